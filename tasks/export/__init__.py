"""The `export` stage."""
