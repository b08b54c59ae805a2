"""tokenize: accepted documents become packed sequences of token ids in Parquet shards."""
