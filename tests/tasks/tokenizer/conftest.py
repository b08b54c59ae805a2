"""Texts and small tokenizers that the tests of this folder share."""

import random

import pytest

WORDS = [
    "water",
    "wheel",
    "mill",
    "race",
    "the",
    "flows",
    "and",
    "a",
    "gate",
    "stone",
    "grinds",
    "grain",
    "水",
    "轮子",
    "def",
    "return",
    "naïve",
    "🙂",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Three hundred documents of a few dozen words, the same in every session."""
    draw = random.Random(7)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(5, 60))) + draw.choice(["\n", "", "  \n\n\t"]) for _ in range(300)]
