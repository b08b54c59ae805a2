"""The splits of a corpus. By itself, so that the command line can name them without importing what records are made of."""

from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
