"""STAGES: one folder per stage, each with a control half (`build.py`, wrapped by `task.py`) and a compute half (`job.py`)."""
