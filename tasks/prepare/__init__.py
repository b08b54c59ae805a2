"""The optional `prepare` stage: accepted documents are normalized, filtered, masked and freed of duplicates before a tokenizer sees them."""
