"""Makes `peer_verdicts.json`: what datatrove's filters say of some documents. Needs an environment of its own:

python3 -m venv PEER
PEER/bin/pip install datatrove==0.10.1 spacy numpy pydantic xxhash orjson
PEER/bin/python tests/tasks/prepare/peer_verdicts.py

Each document is judged twice: with the words that spaCy gives datatrove, and with those of our `WordTable`. Both must equal our verdicts.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

PROSE = """The mill stands at the end of the valley, and the water that drives it comes down from the hills in a long channel of stone. Nobody knows
who built it. In spring the channel is full, and the wheel turns day and night; in summer there are weeks in which it does not turn at all,
and then the miller mends what the winter has broken. He says that a wheel which stands still is worth as much as one that turns, if you
know what to do with the time. His grandson doesn't believe that. He would rather have an engine, as they have in the town, and he has read
in the papers what such an engine costs. "Wait for the rain," says the old man. They have waited for it together since they were both young
enough to be wrong about most things. Sometimes people come up from the town to buy flour, with questions about the price of it, and they
stay until the evening to hear the water."""
SENTENCES = [sentence.strip() + "." for sentence in PROSE.replace("\n", " ").replace('"', "").split(".") if sentence.strip()]


def documents() -> Iterator[str]:
    """Each rule of each family, met and broken; then random ones near the limits."""
    yield PROSE
    yield "\n".join(SENTENCES)
    yield "\n\n".join(SENTENCES)
    yield ""
    yield " \n \n"
    yield "Too short to be of use."
    yield " ".join(["incomprehensibilities"] * 60) + " the to of and."
    yield " ".join(["a", "i", "o", "u"] * 30) + " the to of."
    yield PROSE + " #" * 40
    yield PROSE + " and so on ..." * 60
    yield "\n".join(f"- {sentence}" for sentence in SENTENCES)
    yield "\n".join(f"\u2022 {sentence}" for sentence in SENTENCES[:-1] + SENTENCES) + "\nThe end."
    yield "\n".join(sentence[:-1] + ("..." if index % 2 else ".") for index, sentence in enumerate(SENTENCES))
    yield PROSE + " " + " ".join(str(number) for number in range(80))
    yield (
        "One sees here no word which counts, for it was left out by intent. " * 3
        + "What one needs most, one finds last: time, money, luck, rain. " * 2
    )
    yield "\n\n".join([*SENTENCES[:4], *SENTENCES[:3]])
    yield "\n\n".join([PROSE, "Read more", "Read more", "Share", "Read more", "Share"])
    yield "\n".join([*SENTENCES, SENTENCES[0], SENTENCES[0], SENTENCES[1]])
    yield PROSE + "\n" + "buy now " * 40
    yield PROSE + "\n" + "come and buy now at " * 14
    yield PROSE + " The quick brown fox jumps over the lazy dog and runs." * 4
    yield (
        PROSE
        + " Yes - no - yes - no -- 3.14, 1,000 and e.g. U.S. rules; see https://example.org/a-b?c=d or mail me@example.org about /etc/fstab --now!"
    )
    yield "\n".join(f"Incomprehensibilities internationalise{letter}." for letter in "abcdefghijklmnopqrstuvwxyz")
    yield "\n\n".join(
        [PROSE, *["A short paragraph of words that comes again and again and again in the same words."] * 8, *SENTENCES, *SENTENCES[::-1]]
    )
    yield "\n".join(f"Item {index}" for index in range(60))
    yield "\n".join(f"Section {index} of the contents, with no mark at its end" for index in range(40))
    yield "\n".join([*SENTENCES, "Please enable JavaScript to go on reading this page.", "Read our privacy policy before you go on."])
    yield PROSE + "\nLorem ipsum dolor sit amet, and so on and on."
    yield PROSE + "\nfunction () { return 1 + 1; } is what they wrote."
    yield PROSE + "\nAs was shown before[12], and again later[edit], it is so[citation needed]."
    yield "The only line. It has two sentences."
    yield "\n".join(["A sentence of five words."] * 5)
    yield "\n".join(SENTENCES) + "\nHome\nAbout us\n\n" + "x" * 1200 + " is one long word.\nTwo words.\nNo mark at the end of this one"
    yield (
        "Das Wasser treibt das Rad, und das Rad treibt den Stein. " * 3
        + "Niemand wei\u00df, wer die M\u00fchle gebaut hat, und niemand fragt danach. " * 2
    )
    for path in ("README.md", "docs/architecture.md", "docs/glossary.md", "docs/decisions/0010-gigatoken.md"):
        yield (ROOT / path).read_text(encoding="utf-8")[:6_000]
    for seed in range(40):
        yield random_document(random.Random(seed))


def random_document(chance: random.Random) -> str:
    """Returns sentences with repeated phrases, short lines and signs, about as many as the rules allow."""
    words = PROSE.replace("\n", " ").split()
    parts: list[str] = []
    phrase = " ".join(chance.choices(words, k=chance.randint(2, 11)))
    for _ in range(chance.randint(6, 30)):
        kind = chance.random()
        if kind < 0.6:
            parts.append(" ".join(chance.choices(words, k=chance.randint(4, 25))) + chance.choice(["", ".", "!", "...", ",", "?"]))
        elif kind < 0.85:
            parts.append(phrase + chance.choice([".", ""]))
        else:
            parts.append(chance.choice(["- ", "# ", "* 1.5 ", "(c) 2024 "]) + chance.choice(words))
    return "".join(part + chance.choice([" ", "\n", "\n", "\n\n"]) for part in parts)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from datatrove.data import Document
    from datatrove.pipeline.filters import c4_filters, fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter

    from tasks.prepare.word_table import WordTable

    filters = {
        "gopher": gopher_quality_filter.GopherQualityFilter(),
        "gopher_repetition": gopher_repetition_filter.GopherRepetitionFilter(),
        "fineweb": fineweb_quality_filter.FineWebQualityFilter(char_duplicates_ratio=0.1),
        "c4": c4_filters.C4QualityFilter(),
    }

    def verdict(judge: Any, text: str) -> dict[str, str | None]:
        document = Document(text=text, id="")
        try:
            kept = judge.filter(document)
        except ZeroDivisionError:  # FineWeb's, for a text without words
            return {"text": None, "reason": "division by zero"}
        return {"text": document.text, "reason": ""} if kept is True else {"text": None, "reason": kept[1]}

    modules = (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter)
    own: Callable[..., list[str]] = lambda text, _: WordTable.of([text]).texts[0]  # noqa: E731
    theirs = gopher_quality_filter.split_into_words
    found = []
    for text in documents():
        verdicts: dict[str, dict[str, str | None]] = {}
        for suffix, words in (("", own), ("/spacy", theirs)):
            for module in modules:
                module.split_into_words = words
            verdicts |= {f"{name}{suffix}": verdict(judge, text) for name, judge in filters.items()}
        for each in verdicts.values():
            each["text"] = "" if each["text"] == text else each["text"]  # not the same text nine times
        found.append({"text": text, "verdicts": verdicts})
    about = {"datatrove": version("datatrove"), "spacy": version("spacy"), "documents": found}
    (HERE / "peer_verdicts.json").write_text(json.dumps(about, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
