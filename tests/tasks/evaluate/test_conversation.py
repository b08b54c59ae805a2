"""Of a conversation is judged what assistants say, in windows as well as whole."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.errors import InputError
from tasks.evaluate.document import Document

pytestmark = pytest.mark.slow  # imports torch and transformers

SAID = "{{ '<s>' + message['role'] + ':' + message['content'] + '</s>' }}"
TEMPLATE = "{% for message in messages %}" + SAID + "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
TALK = Document(json.dumps([{"role": "user", "content": "why? " * 9}, {"role": "assistant", "content": "so it is"}]), source="talk")
PROSE = Document('[{"role": "assistant", "content": "not a conversation but text"}]', source="prose")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes as ids, and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<s>", "</s>"])
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def test_a_conversation_is_what_assistants_say_and_a_text_is_a_text(tokenizer: Any, folder: Path) -> None:
    from tasks.evaluate.conversation import encode_conversations

    documents, token_ids, learned = encode_conversations(tokenizer, (PROSE, TALK), folder=folder, end_of_text_id=256, names={"talk"})
    assert documents == (PROSE, Document("so it is</s>", source="talk"))
    assert [ids[0] for ids in token_ids] == [256, 256]
    assert learned[0].tolist() == [False] + [True] * len(PROSE.text)
    assert tokenizer.decode(token_ids[1][learned[1]].tolist(), skip_special_tokens=False) == "so it is</s>"
    assert tokenizer.decode(token_ids[1][1:].tolist(), skip_special_tokens=False) == f"<s>user:{'why? ' * 9}</s><s>assistant:so it is</s>"


@pytest.mark.parametrize("length", [7, 20, 200])
def test_only_what_counts_is_tallied_whatever_the_windows(tokenizer: Any, folder: Path, length: int) -> None:
    import torch

    from tasks.evaluate.conversation import encode_conversations
    from tasks.evaluate.score import score
    from tasks.evaluate.tally import Tally

    class Indifferent:
        """Gives every token the same chance."""

        def __call__(self, *, input_ids: torch.Tensor, use_cache: bool) -> Any:
            del use_cache
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 259))

    documents, token_ids, learned = encode_conversations(tokenizer, (TALK, PROSE), folder=folder, end_of_text_id=256, names={"talk"})
    tally = Tally(num_documents=2, num_bins=5)
    sizes = {"length": length, "overlap": length // 4, "batch_size": 3, "vocab_size": 259}
    score(Indifferent(), token_ids, learned=learned, tally=tally, **sizes, device=torch.device("cpu"), on_tokens=lambda count: None)
    assert tally.tokens.tolist() == [len("so it is") + 1, len(PROSE.text)]
    assert tally.nats == pytest.approx(tally.tokens * math.log(259))
    assert tally.scores(documents).text_bytes == len("so it is</s>") + len(PROSE.text)


def test_a_split_in_which_nobody_answers_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    from tasks.evaluate.conversation import encode_conversations

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% generation %}{% endgeneration %}{{ messages[0]['content'] }}"}))
    with pytest.raises(InputError, match="no assistant says anything"):
        encode_conversations(tokenizer, (TALK,), folder=tmp_path, end_of_text_id=256, names={"talk"})


def test_all_counts_where_nothing_is_said_of_it() -> None:
    from tasks.evaluate.score import _tensors
    from tasks.evaluate.window import windows_of

    windows = windows_of([9], length=4, overlap=1)
    _, _, counted = _tensors(windows, [np.arange(9)], learned=None)
    assert int(counted.sum()) == 8
