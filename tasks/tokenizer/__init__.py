"""tokenizer: a byte-level BPE trained on the accepted corpus, or an existing one that is taken over."""
