"""Files that do something when they are loaded as their names suggest: pickles, each of which leaves a folder behind."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Booby:
    """What a pickle of this does when it is loaded: it leaves a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def booby_traps(canary: Path) -> dict[str, bytes]:
    """Pickles as libraries write them, each of which makes the canary when loaded."""
    plain = {protocol: pickle.dumps(Booby(canary), protocol=protocol) for protocol in (2, 5)}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", plain[2])
    return {
        "tokenizer.pkl": plain[5],
        "weights.pt": archive.getvalue(),
        "pytorch_model.bin": archive.getvalue(),
        "training_args.bin": plain[2],
        "model.ckpt": plain[5],
    }


TRAPS = sorted(booby_traps(Path("x")))
