"""Peers that make token files of a folder of Parquet files (column `text`), as their own documentation says. Runs in the peers' environment.

Usage: NAME PARQUET_FOLDER TOKENIZER_JSON END_OF_TEXT OUT_FOLDER. One thread: the environment says so.

Facts: the hash of all ids of each file as little-endian uint32, an end-of-text id after each document.
"""

import contextlib
import io
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images
import numpy as np
from measuring import hash_of, measured

LENGTH = 1024
"""Tokens of a row, where rows are packed."""


def gigatoken(files: list[Path], tokenizer_json: str, end_of_text: str, out: Path) -> None:
    """The encoder alone, on its own Parquet source: ids in memory, nothing written."""
    import awkward  # noqa: F401
    from gigatoken import ParquetFileSource, Tokenizer

    end = _id_of(tokenizer_json, end_of_text)

    def work() -> list[Any]:
        tokenizer = Tokenizer(tokenizer_json)
        return [tokenizer.encode_files(ParquetFileSource([file], column="text"), parallel=False) for file in files]

    def facts(encoded: list[Any]) -> dict[str, Any]:
        streams = [b"".join(_joined(np.asarray(each.layout.content.data), np.asarray(each.layout.offsets.data), end)) for each in encoded]
        width = 4 * LENGTH
        return {
            "hashes": [hash_of([stream]) for stream in streams],
            "row_hashes": [hash_of([stream[: len(stream) // width * width]]) for stream in streams],
        }

    measured(work, facts=facts)


def huggingface(files: list[Path], tokenizer_json: str, end_of_text: str, out: Path) -> None:
    """Hugging Face `tokenizers` alone: ids in memory, nothing written."""
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    def work() -> list[list[np.ndarray]]:
        tokenizer = Tokenizer.from_file(tokenizer_json)
        found = []
        for file in files:
            ids = []
            for rows in pq.ParquetFile(file).iter_batches(batch_size=1000, columns=["text"]):
                ids += [np.array(one.ids, dtype=np.uint32) for one in tokenizer.encode_batch_fast(rows["text"].to_pylist(), add_special_tokens=False)]
            found.append(ids)
        return found

    end = np.array([_id_of(tokenizer_json, end_of_text)], dtype="<u4").tobytes()
    measured(work, facts=lambda found: {"hashes": [hash_of(piece for ids in file for piece in (ids.tobytes(), end)) for file in found]})


def datatrove(files: list[Path], tokenizer_json: str, end_of_text: str, out: Path) -> None:
    """A local pipeline of reader and tokenizer, one task per file, without its shuffling of documents."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    def work() -> None:
        steps = [
            ParquetReader(str(files[0].parent), id_key="doc_id", read_metadata=False, glob_pattern="*.parquet"),
            DocumentTokenizer(str(out / "ds"), tokenizer_json, eos_token=end_of_text, shuffle_documents=False),
        ]
        LocalPipelineExecutor(pipeline=steps, tasks=len(files), workers=1, logging_dir=str(out / "logs"), skip_completed=False).run()

    def facts(_: None) -> dict[str, Any]:
        found = sorted((out / "ds").glob("*.ds"))
        return {"hashes": [hash_of([np.fromfile(path, dtype="<u2").astype("<u4").tobytes()]) for path in found]}

    measured(work, facts=facts)


def datasets(files: list[Path], tokenizer_json: str, end_of_text: str, out: Path) -> None:
    """`Dataset.map` in batches with a fast transformers tokenizer, saved to disk. Documents are not packed, which spares it work."""
    from datasets import Features, Sequence, Value, disable_progress_bars, load_dataset
    from transformers import PreTrainedTokenizerFast

    disable_progress_bars()
    features = Features({"input_ids": Sequence(Value("uint16"))})

    def work() -> list[Path]:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_json, eos_token=end_of_text)
        end = tokenizer.eos_token_id

        def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            encoded = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
            return {"input_ids": [[*ids, end] for ids in encoded["input_ids"]]}

        saved = []
        for file in files:
            data = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(out / "cache"))
            mapped = data.map(encode, batched=True, remove_columns=data.column_names, features=features, load_from_cache_file=False)
            saved.append(out / file.stem)
            mapped.save_to_disk(str(saved[-1]))
        return saved

    def facts(saved: list[Path]) -> dict[str, Any]:
        from datasets import load_from_disk

        tables = [load_from_disk(str(folder)).data["input_ids"] for folder in saved]
        return {"hashes": [hash_of(chunk.flatten().to_numpy().astype("<u4").tobytes() for chunk in table.chunks) for table in tables]}

    measured(work, facts=facts)


def mds(files: list[Path], tokenizer_json: str, end_of_text: str, out: Path) -> None:
    """mosaicml-streaming's `MDSWriter`, fed with documents encoded in batches, joined and cut into rows; the last row of a file is left out."""
    images.stand_in()
    import pyarrow.parquet as pq
    from streaming.base import MDSWriter
    from tokenizers import Tokenizer

    def work() -> None:
        tokenizer = Tokenizer.from_file(tokenizer_json)
        end = tokenizer.token_to_id(end_of_text)
        for file in files:
            rest = np.empty(0, dtype=np.uint16)
            with MDSWriter(out=str(out / file.stem), columns={"tokens": f"ndarray:uint16:{LENGTH}"}, hashes=["xxh3_64"]) as writer:
                for rows in pq.ParquetFile(file).iter_batches(batch_size=1000, columns=["text"]):
                    encoded = tokenizer.encode_batch_fast(rows["text"].to_pylist(), add_special_tokens=False)
                    stream = np.concatenate([rest, *(np.array([*one.ids, end], dtype=np.uint16) for one in encoded)])
                    whole = stream.size // LENGTH * LENGTH
                    for row in stream[:whole].reshape(-1, LENGTH):
                        writer.write({"tokens": row})
                    rest = stream[whole:]

    def facts(_: None) -> dict[str, Any]:
        from streaming.base import LocalDataset

        found = [LocalDataset(local=str(out / file.stem)) for file in files]
        return {"row_hashes": [hash_of(data[index]["tokens"].astype("<u4").tobytes() for index in range(len(data))) for data in found]}

    measured(work, facts=facts)


def _joined(ids: np.ndarray, offsets: np.ndarray, end: int) -> Any:
    """Yields the ids of each document with the end-of-text id after it."""
    last = np.array([end], dtype="<u4").tobytes()
    for first, after in itertools.pairwise(offsets):
        yield ids[first:after].astype("<u4").tobytes()
        yield last


def _id_of(tokenizer_json: str, token: str) -> int:
    from tokenizers import Tokenizer

    return int(Tokenizer.from_file(tokenizer_json).token_to_id(token))


CONTESTANTS: dict[str, Callable[[list[Path], str, str, Path], None]] = {
    "gigatoken": gigatoken,
    "huggingface": huggingface,
    "datatrove": datatrove,
    "datasets": datasets,
    "mds": mds,
}


def main() -> None:
    """Runs the named contestant once; its chatter goes to standard error."""
    name, folder, tokenizer_json, end_of_text, out = sys.argv[1:]
    output = Path(out)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    try:
        CONTESTANTS[name](sorted(Path(folder).glob("*.parquet")), tokenizer_json, end_of_text, output)
    finally:
        with contextlib.redirect_stderr(io.StringIO()):
            shutil.rmtree(output, ignore_errors=True)


if __name__ == "__main__":
    main()
