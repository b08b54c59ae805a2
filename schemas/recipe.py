"""Loading a recipe: one YAML file plus overrides becomes a `RunConfig`, or a list of everything that is wrong with it.

Relative paths in the file start at the recipe's *project folder* (the nearest folder above it with a `pyproject.toml`,
`.git` or `.headrace`, else its own folder), so a recipe means the same wherever it is called from. Relative paths given
with `--set` start at the current directory, as on any command line. URLs and `${env:…}`/`${file:…}` stay as they are.
Imports nothing heavy: the command line's fast path goes through here.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schemas.canonical import sha256
from schemas.config import RunConfig
from schemas.diagnosis import diagnose
from schemas.errors import ConfigError, InputError, Problem
from schemas.local_inputs import input_problems, nearest_file
from schemas.override import ORIGIN, apply_override, parse_overrides
from schemas.reference import plain_password, reference_problems, resolve_machine
from schemas.source_url import SOURCE_KEYS, URL, holds_secret, is_remote, url_problem
from schemas.warning import warnings_of
from schemas.yaml_text import Document, Location, dotted, map_text, parse_yaml, shorten

_PROJECT_MARKS = ("pyproject.toml", ".git", ".headrace")
_PATH_KEYS = tuple(
    re.compile(pattern)
    for pattern in (
        r"storage\.root",
        r"state",
        r"corpus\.sources\.\d+(\.path)?",
        r"corpus\.preparation\.decontamination\.files\.\d+",
        r"tokenizer\.path",
        r"model\.pretrained",
        r"deepspeed",
        r"tracking\.mlflow_uri",
    )
)
_VERBATIM_KEYS = re.compile(r"(cluster\.(.*\.)?setup|cluster\.extra_directives|evaluation\.prompts|tracking\.sample_prompt)(\..*)?")
"""Text for shells, schedulers and models, where `${…}` is not ours."""
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that is right, and where it came from."""

    config: RunConfig
    """Paths are absolute; secrets are still `${…}`."""
    project_dir: Path
    """Where relative paths of the recipe start. Absolute."""
    path: Path
    """The recipe. Absolute."""
    overrides: tuple[str, ...]
    """`KEY=VALUE` as given after `--set`."""
    text_hash: str
    """SHA-256 of the recipe's text, hex."""
    warnings: tuple[str, ...] = ()
    """Options that were given and have no effect, a line each."""
    files: tuple[Path, ...] = ()
    """What was read besides the recipe: the JSON file that `deepspeed` names. Absolute."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Returns the recipe at `path` with `overrides` (`KEY=VALUE`) applied.

    Raises:
        InputError: there is no such file, or it cannot be read.
        ConfigError: carries every problem of the file and the overrides, with key, value, and the nearest valid key or value.
    """
    path = absolute(path, base=Path.cwd())
    text = _read(path)
    project_dir = project_dir_of(path)
    problems: list[Problem] = []
    files: list[Path] = []
    document = _parse(text, path)
    data = _inline_deepspeed(_anchor(_machine_values(document.data), (), base=project_dir), problems, files)
    problems += document.problems
    assigned: dict[str, str] = {}
    parsed, override_problems = parse_overrides(overrides)
    problems += override_problems
    for override in parsed:
        value = _anchor(_machine_values(override.value), override.location, base=Path.cwd())
        problem = apply_override(data, replace(override, value=value))
        problems += [problem] if problem else []
        assigned[dotted(override.location)] = ORIGIN
        data = _inline_deepspeed(data, problems, files)
    config, found = diagnose(data)
    problems += found
    problems += _value_problems(data)
    problems += input_problems(data)
    if problems or config is None:
        raise ConfigError(tuple(_with_origin(problem, document, assigned) for problem in _unique(problems)), source=str(path))
    config = _anchor_defaults(config, base=project_dir)
    return LoadedRecipe(
        config=config,
        project_dir=project_dir,
        path=path,
        overrides=tuple(overrides),
        text_hash=sha256(text.encode()),
        warnings=warnings_of(config),
        files=tuple(files),
    )


def absolute(path: Path | str, *, base: Path) -> Path:
    """Returns `path` with `~` expanded, started at `base` when it is relative, and without `..`; symbolic links stay as they are named."""
    return Path(os.path.normpath(base / Path(path).expanduser()))


def project_dir_of(path: Path) -> Path:
    """Returns the project folder of the recipe at the absolute `path`."""
    return next((folder for folder in path.parents if any((folder / mark).exists() for mark in _PROJECT_MARKS)), path.parent)


# ---- the file --------------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
            why = "Is a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"recipe {path} cannot be read", why=why, mend="give the YAML file of a recipe")
        if status.st_size > _MAX_BYTES:
            raise InputError(
                f"recipe {path} holds {status.st_size:,} bytes", why=f"a recipe holds at most {_MAX_BYTES:,}", mend="give the YAML file of a recipe"
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        nearest = nearest_file(path)
        raise InputError(f"recipe {path} does not exist", mend=f"did you mean {nearest}?" if nearest else "`headrace init` writes one") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"recipe {path} is not UTF-8 text", why=f"byte {error.start} cannot be decoded", mend="give the YAML file of a recipe"
        ) from None
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read", why=str(error.strerror or error), mend="give the YAML file of a recipe") from None


def _parse(text: str, path: Path) -> Document:
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise ConfigError((Problem(key="recipe", value="", message=f"not YAML: {error}"),), source=str(path)) from None
    if document.data is None:
        document.data = {}
    if not isinstance(document.data, dict):
        message = f"must be a mapping with the sections {', '.join(RunConfig.model_fields)}"
        raise ConfigError((Problem(key="recipe", value=shorten(document.data), message=message),), source=str(path))
    return document


# ---- values ----------------------------------------------------------------------------------------------------------


def _machine_values(data: Any) -> Any:
    return map_text(data, (), lambda text, location: resolve_machine(text) if not _VERBATIM_KEYS.fullmatch(dotted(location)) else text)


def _anchor(data: Any, location: Location, *, base: Path) -> Any:
    """Returns `data` with the relative paths of path keys made absolute against `base`."""

    def anchored(text: str, at: Location) -> str:
        if not any(pattern.fullmatch(dotted(at)) for pattern in _PATH_KEYS) or not text:
            return text
        if dotted(at) == "tracking.mlflow_uri":
            file = text.removeprefix("sqlite:///")
            return text if file == text or file.startswith("/") else f"sqlite:///{absolute(file, base=base)}"
        if URL.match(text) or "${" in text:
            return text
        return str(absolute(text, base=base))

    return map_text(data, location, anchored)


def _anchor_defaults(config: RunConfig, *, base: Path) -> RunConfig:
    """Returns `config` with the default folders, which no text names, made absolute too."""
    root, state = config.storage.root, config.state
    anchored_root = root if URL.match(root) or "${" in root else str(absolute(root, base=base))
    return config.model_copy(update={"storage": config.storage.model_copy(update={"root": anchored_root}), "state": str(absolute(state, base=base))})


def _inline_deepspeed(data: dict[str, Any], problems: list[Problem], files: list[Path]) -> dict[str, Any]:
    """Returns `data` with the JSON file that `deepspeed` names in its place, and adds it to `files`; takes the key out when it cannot be read."""
    section = data.get("deepspeed")
    if section is None or isinstance(section, Mapping):
        return data
    rest = {key: value for key, value in data.items() if key != "deepspeed"}
    if not isinstance(section, str):
        problems.append(Problem(key="deepspeed", value=shorten(section), message="must be a mapping or the path of a JSON file"))
        return rest
    files.append(Path(section))
    try:
        inlined = _json_of(Path(section))
    except OSError as error:
        problems.append(
            Problem(key="deepspeed", value=repr(section), message=f"the file cannot be read: {error.strerror}", nearest=nearest_file(Path(section)))
        )
        return rest
    except ValueError as error:
        problems.append(Problem(key="deepspeed", value=repr(section), message=f"the file is not JSON: {error}"))
        return rest
    if not isinstance(inlined, dict):
        problems.append(Problem(key="deepspeed", value=repr(section), message="the file must hold a JSON object"))
        return rest
    return {**data, "deepspeed": inlined}


def _json_of(path: Path) -> Any:
    """Returns the content of a JSON file that the recipe names. Raises OSError when it cannot be read, ValueError when it is not JSON."""
    if not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file" if path.exists() else "No such file or directory")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it holds more than {_MAX_BYTES:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _value_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Returns what is wrong with references and passwords in any text of the recipe."""
    problems: list[Problem] = []

    def judge(text: str, location: Location) -> str:
        key = dotted(location)
        if not _VERBATIM_KEYS.fullmatch(key):
            problems.extend(reference_problems(key, text))
            if SOURCE_KEYS.fullmatch(key) and is_remote(text):
                if message := url_problem(text):
                    problems.append(Problem(key=key, value="" if holds_secret(text) else repr(text), message=message))
            elif masked := plain_password(text):
                problems.append(Problem(key=key, value="", message="holds a password in plain, which would be stored with the run", nearest=masked))
        return text

    map_text(dict(data), (), judge)
    return problems


# ---- where a problem was written -------------------------------------------------------------------------------------


def _with_origin(problem: Problem, document: Document, assigned: Mapping[str, str]) -> Problem:
    """Returns the problem with `--set`, or the line of its key or of the nearest section above it."""
    if problem.origin:
        return problem
    location: Location = tuple(int(part) if part.isdecimal() else part for part in problem.key.split("."))
    written = location in document.lines
    if any(_is_below(problem.key, key) or (not written and _is_below(key, problem.key)) for key in assigned):
        return replace(problem, origin=ORIGIN)
    while location:
        if location in document.lines:
            return replace(problem, origin=f"line {document.lines[location]}")
        location = location[:-1]
    return problem


def _is_below(key: str, parent: str) -> bool:
    return key == parent or key.startswith(f"{parent}.")


def _unique(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    return tuple(dict.fromkeys(problems))
