"""`headrace init`: looks at the text, the model and the tokenizer, and writes a recipe that passes `plan`."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.launchers import LAUNCHED
from schemas.cluster_config import ClusterKind
from schemas.corpus_config import SourceConfig
from schemas.errors import ConfigError, InputError, Problem
from schemas.recipe import absolute, load_recipe, project_dir_of
from schemas.starting_point import TextFacts, Wish, recipe_text, summary_of
from schemas.suggestion import nearest_choice

_COMPRESSION_RATIO = 3.5
"""Text in gzip, zstd or Parquet, by experience."""
_COLUMN_NAMES = ("text", "content", "body", "document", "raw_content", "article", "code")
_PEEK_BYTES = 1 << 20
_PROMPT_CHARS = 40


def write_recipe(recipe: Path, *, text: str, model: Path | None, tokenizer: Path | None, deepspeed: Path | None, cluster: str) -> dict[str, Any]:
    """Writes a recipe and returns where, what it does, in a line, and the commands that come next.

    Raises:
        InputError: the file exists, or there is no text at `text`.
        ConfigError: an option is wrong; nothing is left behind.
    """
    asked, recipe = recipe, absolute(recipe, base=Path.cwd())
    if recipe.exists():
        raise InputError(f"{recipe} exists", why="a recipe is never overwritten", mend="give another name, or remove it")
    if not recipe.parent.is_dir():
        raise InputError(f"{recipe.parent} does not exist", mend=f"mkdir -p {recipe.parent}")
    project_dir = project_dir_of(recipe)
    wish = _wish(recipe, model=model, tokenizer=tokenizer, deepspeed=deepspeed, cluster=cluster, project_dir=project_dir)
    facts = _look_at(text, project_dir=project_dir)
    _write_checked(recipe, recipe_text(facts, wish))
    return {"recipe": str(recipe), "summary": summary_of(facts, wish), "next": _next_commands(asked, kind=wish.cluster)}


def _next_commands(recipe: Path, *, kind: ClusterKind) -> list[str]:
    """Returns what to do with the recipe: look at it, look at the cluster that it is for, run it where this version can."""
    commands = [f"headrace plan {recipe}"]
    commands += [f"headrace doctor {recipe}"] if kind is not ClusterKind.LOCAL else []
    return commands + ([f"headrace run {recipe}"] if kind in LAUNCHED else [])


def _write_checked(recipe: Path, content: str) -> None:
    """Writes the file once it has proven to load; a wrong one is not left behind."""
    draft = recipe.with_name(f".{recipe.name}.{os.getpid()}.yaml")
    try:
        draft.write_text(content, encoding="utf-8")
        load_recipe(draft)
        os.link(draft, recipe)
    except FileExistsError as error:
        raise InputError(f"{recipe} exists", why="a recipe is never overwritten", mend="give another name, or remove it") from error
    except PermissionError as error:
        raise InputError(f"{recipe} cannot be written", why=str(error.strerror), mend="give a folder that you may write to") from error
    finally:
        draft.unlink(missing_ok=True)


# ---- the options ------------------------------------------------------------------------------------------------------


def _wish(recipe: Path, *, model: Path | None, tokenizer: Path | None, deepspeed: Path | None, cluster: str, project_dir: Path) -> Wish:
    problems: list[Problem] = []
    if cluster not in list(ClusterKind):
        problems.append(
            Problem("--cluster", repr(cluster), f"must be one of {', '.join(ClusterKind)}", nearest=nearest_choice(cluster, list(ClusterKind)))
        )
    for option, path in (("--model", model), ("--tokenizer", tokenizer), ("--deepspeed", deepspeed)):
        if path is not None and not path.exists():
            problems.append(Problem(option, repr(str(path)), "does not exist"))
    if model is not None and tokenizer is None and model.exists() and not (model / "tokenizer.json").is_file():
        problems.append(Problem("--model", repr(str(model)), "holds no tokenizer.json; give the model's tokenizer with --tokenizer"))
    if problems:
        raise ConfigError(tuple(problems), source="headrace init")
    tokenizer = tokenizer or model
    return Wish(
        name=re.sub(r"[^a-z0-9]+", "-", recipe.stem.lower()).strip("-")[:40].strip("-") or "run",
        cluster=ClusterKind(cluster),
        gpus=sum(1 for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name)),
        cores=len(os.sched_getaffinity(0)),
        model_path=_in_recipe(model, project_dir=project_dir),
        model_positions=_positions(model),
        tokenizer_path=_in_recipe(tokenizer, project_dir=project_dir),
        end_of_text=_end_of_text(tokenizer),
        deepspeed_path=_in_recipe(deepspeed, project_dir=project_dir),
    )


def _in_recipe(path: Path | None, *, project_dir: Path) -> str:
    """Returns a path as it shall stand in the recipe: relative inside the project, absolute outside."""
    if path is None:
        return ""
    place = absolute(path, base=Path.cwd())
    return str(place.relative_to(project_dir)) if place.is_relative_to(project_dir) else str(place)


def _positions(model: Path | None) -> int:
    """Returns the longest sequence that a model in Hugging Face layout knows; 0 when it does not say."""
    config = _json_of(model / "config.json") if model is not None else {}
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 0)


def _end_of_text(tokenizer: Path | None) -> str:
    """Returns the token between documents of an existing tokenizer, where it is not Headrace's default."""
    if tokenizer is None:
        return ""
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    token = _json_of(folder / "tokenizer_config.json").get("eos_token")
    name = token.get("content") if isinstance(token, dict) else token
    return str(name) if name and name != "<|endoftext|>" else ""


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON", why=str(error), mend="give a folder in Hugging Face layout") from error
    return content if isinstance(content, dict) else {}


# ---- the text ---------------------------------------------------------------------------------------------------------


def _look_at(text: str, *, project_dir: Path) -> TextFacts:
    """Returns what can be told of the text by looking at names, sizes and the first record. Raises InputError."""
    from tasks.validate.sources import compression_of, find_files, format_of

    path = text if "://" in text else str(absolute(text, base=Path.cwd()))
    source = SourceConfig(path=path)
    files = find_files(source, name="--text")
    formats = Counter(format_of(file.relative_path, source) for file in files)
    main_format = formats.most_common(1)[0][0]
    size = 0.0
    for file in files:
        packed = compression_of(file.relative_path) != "none" or format_of(file.relative_path, source) == "parquet"
        size += file.path.stat().st_size * (_COMPRESSION_RATIO if packed else 1.0)
    first = next(file for file in files if format_of(file.relative_path, source) == main_format)
    record = {"text": _first_line(first.path)} if main_format == "text" else _first_record(first.path, main_format)
    column = _text_column(record)
    return TextFacts(
        path=_in_recipe(Path(path), project_dir=project_dir),
        num_files=len(files),
        text_bytes=round(size),
        format="text" if main_format == "text" else "auto",
        text_column=column,
        beginning=_beginning(record.get(column, "")),
    )


def _beginning(text: str) -> str:
    """Returns the first few words, or characters where there are no spaces."""
    words = " ".join(text.split()[:4])
    return words if 0 < len(words) <= _PROMPT_CHARS else text.strip()[: _PROMPT_CHARS // 2]


def _text_column(record: dict[str, str]) -> str:
    """Returns the column that holds the text: by its name, else the longest one."""
    named = next((name for name in _COLUMN_NAMES if name in record), None)
    return named or max(record, key=lambda name: len(record[name]), default="text")


def _first_record(path: Path, form: str) -> dict[str, str]:
    """Returns the text columns of a file's first record; empty when it cannot be told: `validate` says what is wrong."""
    import csv

    if form == "parquet":
        return _first_row(path)
    line = _first_line(path)
    if form == "csv":
        names = next(csv.reader([line]), [])
        return dict.fromkeys(names, "")
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return {str(key): value for key, value in record.items() if isinstance(value, str)} if isinstance(record, dict) else {}


def _first_row(path: Path) -> dict[str, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError):
        return {}
    return {field.name: "" for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)}


def _first_line(path: Path) -> str:
    import gzip

    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return stream.readline(_PEEK_BYTES).decode("utf-8", errors="replace")
        if path.suffix == ".zst":
            import pyarrow as pa

            with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
                return bytes(stream.read(_PEEK_BYTES)).partition(b"\n")[0].decode("utf-8", errors="replace")
        with path.open("rb") as plain:
            return plain.readline(_PEEK_BYTES).decode("utf-8", errors="replace")
    except (OSError, EOFError):
        return ""
