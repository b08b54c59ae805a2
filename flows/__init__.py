"""STORIES: what happens in which order, and the command line. Functions only; no class is defined here."""
