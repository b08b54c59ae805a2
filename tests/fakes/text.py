"""Made-up documents whose words follow each other by rules, so that models can learn something and baselines differ."""

import random

WORDS = ["water", "wheel", "mill", "race", "the", "flows", "and", "a", "gate", "stone", "grinds", "grain", "水轮", "naïve", "🙂", "def", "return"]


def documents(count: int, *, seed: int, longest: int = 120) -> list[str]:
    """Returns `count` documents of 1 to `longest` words; each word prefers two followers."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        word = draw.choice(WORDS)
        words = [word]
        for _ in range(draw.randint(0, longest - 1)):
            place = WORDS.index(word)
            word = draw.choice([WORDS[(place * 3 + 1) % len(WORDS)], WORDS[(place * 5 + 2) % len(WORDS)], draw.choice(WORDS)])
            words.append(word)
        made.append(" ".join(words) + "\n")
    return made
