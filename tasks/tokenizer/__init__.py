"""The `tokenizer` stage."""
