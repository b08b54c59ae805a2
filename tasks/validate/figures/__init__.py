"""Figures of a corpus that are counted as it is written, and merged over its groups."""
