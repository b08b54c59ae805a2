"""WORDS: the frozen types and pure rules that every other folder speaks in.

Imports nothing from `cluster`, `tasks` or `flows`, does no I/O beyond reading a recipe, and imports in a tenth of a second.
"""
