"""What the store holds, what of it is still wanted, and how the rest goes without anybody losing what they use."""
