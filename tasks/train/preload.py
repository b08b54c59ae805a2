"""What the zygote imports before it forks ranks: a rank then starts in a fraction of a second.

Importing this module imports the libraries, and what they would import lazily when a first model, engine and step are made. It makes
no tensor, no group and no engine, and starts no thread, since none of them survives a fork.
"""

import importlib

import tasks.train.libraries
import tasks.train.loop
import tasks.train.session

_LAZY = (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.comm.torch",
    "transformers.generation.utils",
    "transformers.initialization",
    "transformers.modeling_layers",
    "transformers.processing_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.configuration_auto",
    "transformers.modeling_utils",
    "tokenizers",
)
"""Imported lazily by the libraries, seconds in all; a version that moves one of them costs time, not correctness."""


def _import_lazy_parts() -> None:
    for name in _LAZY:
        try:
            importlib.import_module(name)
        except ImportError:
            continue


tasks.train.libraries.import_libraries()
_import_lazy_parts()
