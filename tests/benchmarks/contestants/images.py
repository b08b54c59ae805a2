"""A stand-in for torchvision: mosaicml-streaming imports it for its image sets, and PyPI's build cannot be imported beside torch's CPU build."""

import importlib.machinery
import sys
import types


class _Anything(types.ModuleType):
    """A module that has every name; each is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stand_in() -> None:
    """Puts the stand-in where `import torchvision` finds it."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = _Anything(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
