"""STORIES: what happens in which order, and the command line. Functions only."""
