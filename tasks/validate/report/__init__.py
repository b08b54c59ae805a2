"""The data report: one page of pictures, tables and findings about a corpus, each finding with its remedy."""
