"""Documents of a sequence kept apart: what a model computes for one does not depend on its neighbours, and restarts change nothing."""

import dataclasses
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cluster.storage import file_entry
from schemas.config import RunConfig
from schemas.errors import ConfigError, InputError
from schemas.manifest import Shard, ShardManifest, Split
from schemas.stage import Stage
from tasks.tokenize.best_fit import BestFitPacker
from tasks.tokenize.shard_file import write_shard
from tasks.tokenize.shard_reader import ShardReader
from tasks.tokenizer.engine import Encoded
from tasks.train.order import GlobalOrder, global_batch
from tests.fakes.tiny_training import LENGTH, LLAMA, VOCABULARY
from tests.tasks.train.trained_state import files_of, newest_commit

pytestmark = pytest.mark.slow  # imports torch

END = 0
SMALL = {key: value for key, value in LLAMA.items() if key not in ("model_type", "attention_dropout")}
MODELS: Mapping[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SMALL},
    "llama-eager": {"model_type": "llama", **SMALL, "attn_implementation": "eager"},
    "qwen2": {"model_type": "qwen2", **SMALL},
    "mistral-sliding": {"model_type": "mistral", **SMALL, "sliding_window": 3},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    },
    "gpt_neox": {"model_type": "gpt_neox", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def store(folder: Path, *, rows: Mapping[Split, int] = {"train": 40, "validation": 11}, says_what_is_learned: bool = False) -> ShardManifest:
    """Packs random documents into about so many rows of each split, with their boundaries, and returns the manifest. What is learned: even ids."""
    draw, shards = np.random.default_rng(0), []
    (folder / "shards").mkdir(parents=True)
    for split, count in rows.items():
        lengths = draw.integers(0, LENGTH * 3 // 2, size=count * 3 // 2)
        ids = draw.integers(1, VOCABULARY, size=lengths.sum()).astype(np.uint32)
        encoded = Encoded(ids=ids, offsets=np.cumsum([0, *lengths]), learned=ids % 2 == 0)
        sizes = {"sequence_length": LENGTH, "rows_per_shard": 25, "vocab_size": VOCABULARY, "end_of_text_id": END}
        packer = BestFitPacker(**sizes, boundaries=True, loss_masks=says_what_is_learned)
        for number, packed in enumerate([*packer.add(encoded, sizes=lengths), *packer.finish()]):
            path = folder / f"shards/{split}-{number}.parquet"
            written = write_shard(path, packed.rows, layout="fixed", facts={}, lengths=packed.lengths, starts=packed.starts, learned=packed.learned)
            counts = {"tokens": packed.tokens, "last_row_tokens": packed.last_row_tokens, "text_bytes": packed.tokens * 3}
            about = {"group": 0, "split": split, "file": file_entry(path, relative_to=folder), "rows": len(packed.rows)}
            offsets = {name: value for name, value in dataclasses.asdict(written).items() if name != "xxh3"}
            shards.append(Shard.model_validate(about | counts | offsets))
    manifest = ShardManifest(
        layout="fixed",
        dtype="uint16",
        sequence_length=LENGTH,
        vocab_size=VOCABULARY,
        end_of_text_id=END,
        tokenizer_hash="0",
        engine="huggingface",
        packing="best_fit",
        boundaries=True,
        loss_masks=says_what_is_learned,
        shards=tuple(shards),
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "tokenize"
    store(folder)
    return folder


def source_of(folder: Path, *, masked: bool) -> Any:
    from tasks.train.data import BatchSource

    manifest = ShardManifest.model_validate_json((folder / "manifest.json").read_bytes())
    return BatchSource(ShardReader(manifest, folder=folder, split="train"), manifest=manifest, split="train", masked=masked)


def model_of(config: Mapping[str, Any], *, dtype: Any = None) -> Any:
    import torch

    from tasks.train.model import build_model
    from tests.fakes.in_process_work import config_with

    manifest: Any = SimpleNamespace(vocab_size=VOCABULARY, end_of_text_id=END, sequence_length=LENGTH)
    module = build_model(config_with(model={"config": dict(config)}, tokenization={"sequence_length": LENGTH}), manifest=manifest).module
    return module.to(dtype or torch.float32).eval()


def pieces(folder: Path, row: int) -> list[npt.NDArray[np.int64]]:
    """Returns the documents of a row, without padding."""
    manifest = ShardManifest.model_validate_json((folder / "manifest.json").read_bytes())
    reader, index = ShardReader(manifest, folder=folder, split="train"), np.array([row])
    ids = reader.rows(index)[0, : reader.lengths(index)[0]]
    return np.split(ids, np.flatnonzero(reader.starts(index)[0])[1:])


def test_positions_start_anew_with_each_document() -> None:
    from tasks.train.documents import positions_of

    starts = np.zeros((2, 7), dtype=bool)
    starts[0, [0, 3, 4]] = True
    starts[1, 5] = True  # its row goes on with a document of the row before
    assert positions_of(starts).tolist() == [[0, 1, 2, 0, 0, 1, 2], [0, 1, 2, 3, 4, 0, 1]]


@pytest.mark.parametrize("masked", [False, True])
def test_labels_leave_out_padding_and_where_documents_are_kept_apart_their_first_tokens(folder: Path, masked: bool) -> None:
    source = source_of(folder, masked=masked)
    indices = np.arange(source.num_sequences)
    batch = source.batch(indices)
    for row in indices:
        documents = pieces(folder, int(row))
        expected = [int(id_) for document in documents for id_ in document]
        places = np.cumsum([0, *map(len, documents)])[1:-1] if masked else []
        for place in places:
            expected[place] = -100
        assert batch.labels[row].tolist() == expected + [-100] * (LENGTH - len(expected))
        assert batch.tokens[row, : len(expected)].tolist() == [int(id_) for document in documents for id_ in document]
    assert batch.num_targets == int((batch.labels[:, 1:] != -100).sum())
    assert (batch.positions is not None) == masked
    assert (batch.labels == -100).any(), "there is padding"


def test_what_others_say_in_conversations_is_not_learned(tmp_path: Path) -> None:
    """Packed with a mark on even ids."""
    manifest = store(tmp_path, says_what_is_learned=True)
    source = source_of(tmp_path, masked=False)
    batch = source.batch(np.arange(source.num_sequences))
    reader = ShardReader(manifest, folder=tmp_path, split="train")
    is_learned = reader.learned(batch.indices)
    assert np.array_equal(batch.labels.numpy() != -100, is_learned)
    assert np.array_equal(batch.labels.numpy()[is_learned], batch.tokens.numpy()[is_learned])
    ids = batch.tokens.numpy()[(batch.tokens.numpy() != END)]
    assert set(batch.labels.numpy()[is_learned].tolist()) - {END} == {int(id_) for id_ in ids if id_ % 2 == 0}
    assert batch.num_targets == int(is_learned[:, 1:].sum()) == source.num_targets(batch.indices)


def test_parts_of_a_batch_are_those_of_the_whole(folder: Path) -> None:
    source = source_of(folder, masked=True)
    parts = [np.array([3, 0]), np.array([7]), np.array([1, 30, 2])]
    for batch, part in zip(source.batches(parts), parts, strict=True):
        alone = source.batch(part)
        for found, expected in ((batch.tokens, alone.tokens), (batch.labels, alone.labels), (batch.positions, alone.positions)):
            assert found.tolist() == expected.tolist()
        assert batch.num_targets == alone.num_targets


@pytest.mark.parametrize("masked", [False, True])
def test_targets_are_counted_without_reading_ids(folder: Path, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.train import documents

    monkeypatch.setattr(documents, "_TOKENS_AT_A_TIME", 3 * LENGTH)
    source = source_of(folder, masked=masked)
    indices = np.arange(source.num_sequences)[::-1]
    expected = source.batch(indices).num_targets
    monkeypatch.setattr(ShardReader, "rows", None)
    assert source.num_targets(indices) == expected


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_target_of_a_step_counts_equally_whatever_micro_batch_it_is_in(folder: Path, world_size: int) -> None:
    import torch

    from tasks.train.data import TrainingBatches
    from tasks.train.engine import Engine

    module, source = model_of(MODELS["llama"]), source_of(folder, masked=True)
    fake: Any = SimpleNamespace(deepspeed=module, gang=SimpleNamespace(device=torch.device("cpu")))
    order = GlobalOrder(source.num_sequences, 7)
    losses: list[float] = []
    for rank in range(world_size):
        batches = TrainingBatches(source, order=order, global_batch_size=12, micro_batch_size=2, rank=rank, world_size=world_size)
        with torch.no_grad():
            losses += [float(Engine.loss(fake, batch)) for batch in batches.at(3)]
        batches.close()
    assert len(losses) == 6
    whole = source.batch(global_batch(3, num_sequences=source.num_sequences, global_batch_size=12, seed=7))
    with torch.no_grad():
        expected = float(module(input_ids=whole.tokens, labels=whole.labels, position_ids=whole.positions).loss)
    assert sum(losses) / len(losses) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_document_gets_the_logits_that_it_gets_alone(folder: Path, name: str) -> None:
    import torch

    module, source = model_of(MODELS[name]), source_of(folder, masked=True)
    batch = source.batch(np.arange(12))
    with torch.no_grad():
        together = module(input_ids=batch.tokens, position_ids=batch.positions).logits
        unmasked = module(input_ids=batch.tokens).logits
        furthest = 0.0
        for row in range(12):
            place = 0
            for document in pieces(folder, row):
                alone = module(input_ids=torch.from_numpy(document)[None]).logits[0]
                span = slice(place, place + len(document))
                torch.testing.assert_close(together[row, span], alone, rtol=1e-4, atol=1e-6)
                furthest = max(furthest, float((unmasked[row, span] - alone).abs().max()))
                place = span.stop
    assert furthest > 1e-3, "without positions, documents read each other"


def test_the_loss_is_the_mean_over_what_documents_foretell_of_themselves(folder: Path) -> None:
    import torch

    module, batch = model_of(MODELS["llama"]), source_of(folder, masked=True).batch(np.arange(12))
    nats, targets = 0.0, 0
    with torch.no_grad():
        found = float(module(input_ids=batch.tokens, labels=batch.labels, position_ids=batch.positions).loss)
        for document in (document for row in range(12) for document in pieces(folder, row) if len(document) > 1):
            ids = torch.from_numpy(document)[None]
            nats += float(module(input_ids=ids, labels=ids).loss) * (len(document) - 1)
            targets += len(document) - 1
    assert targets == batch.num_targets
    assert found == pytest.approx(nats / targets, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_models_that_keep_documents_apart_are_let_pass(name: str, dtype: str) -> None:
    import torch

    from tasks.train.documents import check_documents_apart

    module = model_of(MODELS[name], dtype=getattr(torch, dtype))
    module.train()
    check_documents_apart(module, vocab_size=VOCABULARY, device=torch.device("cpu"))
    assert module.training, "and are left as they were"


@pytest.mark.parametrize("kind", ["bloom", "mamba", "masks-but-counts-on", "takes-none"])
def test_models_that_do_not_are_refused(kind: str) -> None:
    import torch
    from torch import nn

    from tasks.train.documents import check_documents_apart

    class Wrapped(nn.Module):
        """GPT-2 that misuses its positions, or does not know of any."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model_of(MODELS["gpt2"])

    class CountsOn(Wrapped):
        """Masks, but lets positions go on over the end of a document."""

        def forward(self, input_ids: Any, position_ids: Any = None) -> Any:
            length = input_ids.shape[1]
            together = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            if position_ids is not None:
                number = (position_ids == 0).cumsum(-1)
                together = together & (number[:, None, :, None] == number[:, None, None, :])
            return self.inner(input_ids=input_ids, attention_mask=together)

    class TakesNone(Wrapped):
        """Has no such parameter."""

        def forward(self, input_ids: Any) -> Any:
            return self.inner(input_ids=input_ids)

    makers: dict[str, Callable[[], Any]] = {
        "bloom": lambda: model_of({"model_type": "bloom", "hidden_size": 24, "n_layer": 2, "n_head": 2, "attn_implementation": "eager"}),
        "mamba": lambda: model_of(
            {"model_type": "mamba", "hidden_size": 24, "state_size": 4, "num_hidden_layers": 2, "attn_implementation": "eager"}
        ),
        "masks-but-counts-on": CountsOn,
        "takes-none": TakesNone,
    }
    module = makers[kind]()
    with pytest.raises(ConfigError) as caught:
        check_documents_apart(module, vocab_size=VOCABULARY, device=torch.device("cpu"))
    (problem,) = caught.value.problems
    assert (problem.key, problem.nearest) == ("training.document_attention", "full")


def test_a_batch_without_a_target_has_no_loss_and_no_gradient() -> None:
    import torch

    from tasks.train.data import Batch
    from tasks.train.engine import Engine

    module = model_of(MODELS["llama"])
    fake: Any = SimpleNamespace(deepspeed=module, gang=SimpleNamespace(device=torch.device("cpu")))
    tokens = torch.tensor([[5, 0, 0, 0]])
    batch = Batch(np.array([0]), tokens, torch.tensor([[5, -100, -100, -100]]), num_targets=0)
    loss = Engine.loss(fake, batch)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(not parameter.grad.any() for parameter in module.parameters() if parameter.grad is not None)


def test_the_engine_tells_the_model_of_documents(folder: Path) -> None:
    import torch

    from tasks.train.engine import Engine

    module, batch = model_of(MODELS["llama"]), source_of(folder, masked=True).batch(np.arange(12))
    fake: Any = SimpleNamespace(deepspeed=module, gang=SimpleNamespace(device=torch.device("cpu")))
    with torch.no_grad():
        expected = module(input_ids=batch.tokens, labels=batch.labels, position_ids=batch.positions).loss
        assert torch.equal(Engine.loss(fake, batch), expected)
        assert not torch.equal(Engine.loss(fake, dataclasses.replace(batch, positions=None)), expected)


def test_plain_pytorch_gets_positions_when_it_asks(folder: Path, tmp_path: Path) -> None:
    from tasks.train.torch_dataset import ShardDataset
    from tests.fakes.tiny_training import make_shards

    batch = source_of(folder, masked=True).batch(np.array([4, 2]))
    dataset = ShardDataset(folder, masked=True)
    found = dataset[np.array([4, 2])]
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "input_ids": batch.tokens.tolist(),
        "labels": batch.labels.tolist(),
        "position_ids": batch.positions.tolist(),
    }
    assert dataset[4]["position_ids"].tolist() == batch.positions[0].tolist()
    assert set(ShardDataset(folder)[4]) == {"input_ids", "labels"}
    make_shards(tmp_path, rows={"train": (3,)})
    with pytest.raises(InputError, match="where documents start"):
        ShardDataset(tmp_path, masked=True)


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_a_killed_training_on_packed_documents_ends_with_the_bytes_of_a_calm_one(
    gang: Callable[[str], Any], make_config: Callable[..., RunConfig], folder: Path, stage: int
) -> None:
    config = make_config(training__document_attention="masked", tokenization__boundaries=True, training__zero_stage=stage)
    calm, killed = gang("calm"), gang("killed")
    for each in (calm, killed):
        entry = file_entry(folder / "manifest.json", relative_to=folder)
        dirs = {**each.inputs.dirs, Stage.TOKENIZE: folder}
        each.inputs = dataclasses.replace(each.inputs, dirs=dirs, entries={**each.inputs.entries, Stage.TOKENIZE: entry})
    calm.run(config)
    assert killed.kill_at(config, step=3)[1] == -signal.SIGKILL
    killed.run(config)
    expected = newest_commit(calm.artifact_dir)
    assert expected.step == 6
    assert files_of(killed.artifact_dir, newest_commit(killed.artifact_dir)) == files_of(calm.artifact_dir, expected)
    assert all(0.0 < point["values"]["loss"] < 6.0 for point in calm.metrics())
