"""The `tokenize` stage."""
