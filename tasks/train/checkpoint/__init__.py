"""Logical checkpoints: fragments of named fp32 parameters and moments, made true by an exclusively created commit."""
