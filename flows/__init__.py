"""STORIES: what happens in which order, and the command line. Functions only; no class is defined here."""

import os

# Before Prefect is imported: a flow that is called without a server has Prefect start one, which would call home.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
