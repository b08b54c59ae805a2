"""A finished training artifact without training: a tiny Llama's weights, cut into fragments as ranks would have written them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.storage import file_entry
from schemas.artifact import ArtifactRecord, FileEntry, content_hash_of
from schemas.canonical import canonical_json
from schemas.checkpoint import SLOTS, CommitRecord, Fragment, ParameterShape, RankIndex, TrainingState
from schemas.stage import Stage
from tasks.work import Draft
from tests.fakes.in_process_work import commit as record_of

STEP, EPOCH = 40, 3
FOLDER = f"checkpoints/step-{STEP:08d}.e{EPOCH:06d}"
COMMIT = f"commits/step-{STEP:08d}.json"

Weights = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Cut:
    """One fragment to be written: elements [start, stop) of a flattened parameter."""

    name: str
    start: int
    stop: int


def halves(weights: Weights) -> tuple[tuple[Cut, ...], tuple[Cut, ...]]:
    """Returns the cuts of two ranks as ZeRO 1 and 2 make them: one flat line of all parameters, cut in the middle."""
    total = sum(values.size for values in weights.values())
    ranks: tuple[list[Cut], list[Cut]] = ([], [])
    position = 0
    for name, values in weights.items():
        middle = min(max(total // 2 - position, 0), values.size)
        for rank, start, stop in ((0, 0, middle), (1, middle, values.size)):
            if start < stop:
                ranks[rank].append(Cut(name, start, stop))
        position += values.size
    return tuple(ranks[0]), tuple(ranks[1])


def slices(weights: Weights, *, world_size: int) -> tuple[tuple[Cut, ...], ...]:
    """Returns the cuts of ZeRO 3: every parameter spread over all ranks; small ones leave the last ranks without a share."""
    cuts: list[list[Cut]] = [[] for _ in range(world_size)]
    for name, values in weights.items():
        share = -(-values.size // world_size)
        for rank in range(world_size):
            start, stop = min(rank * share, values.size), min((rank + 1) * share, values.size)
            if start < stop:
                cuts[rank].append(Cut(name, start, stop))
    return tuple(tuple(mine) for mine in cuts)


def write_training(
    root: Path,
    weights: Weights,
    *,
    cuts: Sequence[Sequence[Cut]],
    precision: str = "bf16",
    model_config: Mapping[str, Any] | None = None,
    key: str = "train/test-000000000000",
) -> ArtifactRecord:
    """Writes a training artifact with one commit below `root` and returns its record."""
    artifact = root / key
    folder = artifact / FOLDER
    folder.mkdir(parents=True)
    for rank, mine in enumerate(cuts):
        _write_rank(folder, weights, rank=rank, cuts=mine, world_size=len(cuts))
    state = TrainingState(
        step=STEP,
        optimizer_step=STEP,
        skipped_steps=(),
        loss_scale={},
        parameters=tuple(ParameterShape(name=name, shape=values.shape) for name, values in weights.items()),
        seed=7,
        zero_stage=2,
        precision=precision,
    )
    (folder / "state.json").write_bytes(canonical_json(state))
    (folder / "model_config.json").write_bytes(canonical_json(dict(model_config or {})))
    return commit_files(root, key=key)


def commit_files(root: Path, *, key: str = "train/test-000000000000") -> ArtifactRecord:
    """Commits the checkpoint's files as they are now and returns the artifact's record."""
    artifact = root / key
    folder = artifact / FOLDER
    files = tuple(file_entry(path, relative_to=folder) for path in sorted(folder.iterdir()))
    world_size = sum(entry.path.endswith(".bin") for entry in files)
    commit = CommitRecord(step=STEP, epoch=EPOCH, folder=FOLDER, files=files, world_size=world_size, committed_at=1.0)
    path = artifact / COMMIT
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(commit.sealed().to_bytes())
    inside = tuple(entry.model_copy(update={"path": f"{FOLDER}/{entry.path}"}) for entry in files)
    draft = Draft(files=inside, summary={"commit_step": STEP}, content_hash=content_hash_of(files))
    return record_of(root, Stage.TRAIN, draft, key=key)


def _write_rank(folder: Path, weights: Weights, *, rank: int, cuts: Sequence[Cut], world_size: int) -> None:
    fragments = []
    with (folder / f"rank-{rank:04d}.bin").open("wb") as file:
        for cut, slot in itertools.product(cuts, SLOTS):
            offset = file.tell()
            values = weights[cut.name].reshape(-1)[cut.start : cut.stop].astype("<f4")
            file.write((values if slot == "weight" else np.full_like(values, 0.5)).tobytes())
            count = cut.stop - cut.start
            fragments.append(Fragment(name=cut.name, slot=slot, start=cut.start, count=count, byte_offset=offset))
    index = RankIndex(rank=rank, world_size=world_size, fragments=tuple(fragments), rng={})
    (folder / f"rank-{rank:04d}.json").write_bytes(canonical_json(index))


def tiny_llama(*, vocab_size: int, length: int = 32, seed: int = 0) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, Any]]:
    """Returns the weights (tied ones once) and the configuration of a small random Llama."""
    import json

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    weights = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    return weights, json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": ["LlamaForCausalLM"]}


def write_tokenizer(root: Path, texts: Sequence[str], *, vocab_size: int = 300, key: str = "tokenizer/test-000000000000") -> ArtifactRecord:
    """Writes a small byte-level BPE trained on `texts`, as the `tokenizer` stage leaves it, and returns its record."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from tasks.tokenizer.folder import tokenizer_config

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    folder = root / key
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(tokenizer_config({}, end_of_text="<|endoftext|>"))
    (folder / "report.json").write_bytes(b"{}")
    files: tuple[FileEntry, ...] = tuple(file_entry(path, relative_to=folder) for path in sorted(folder.iterdir()))
    return record_of(root, Stage.TOKENIZER, Draft(files=files, summary={}), key=key)
