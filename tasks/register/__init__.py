"""The `register` stage."""
