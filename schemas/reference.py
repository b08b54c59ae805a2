"""`${…}` in a recipe: secrets that are resolved at use and never stored, and the few values that only the machine knows.

* `${env:NAME}` and `${file:PATH}` are secrets. The configuration keeps the text `${…}`, so records, journals, job specs
  and logs hold no secret; `resolve_secrets` gives the value at the moment of use.
* `${python:stdlib}` is the running Python's standard library, replaced when the recipe is loaded.
"""

import difflib
import os
import re
import sysconfig
from pathlib import Path
from urllib.parse import unquote, urlsplit

from schemas.errors import ConfigError, Problem

_REFERENCE = re.compile(r"\$\{(?P<kind>[a-z]+):(?P<name>[^}]*)\}")
_KINDS = ("env", "file", "python")
SECRET_KEYS = ("storage.root", "tracking.mlflow_uri")
"""The keys whose secrets are resolved, each where it is used. Elsewhere `${env:…}` would be taken as it is written, so it is refused."""


def has_secret(text: str) -> bool:
    """Whether `text` holds `${env:…}` or `${file:…}`."""
    return any(match["kind"] in ("env", "file") for match in _REFERENCE.finditer(text))


def resolve_machine(text: str) -> str:
    """Returns `text` with `${python:stdlib}` replaced; secrets stay as they are."""
    return text.replace("${python:stdlib}", sysconfig.get_path("stdlib"))


def resolve_secrets(text: str) -> str:
    """Returns `text` with every `${env:NAME}` and `${file:PATH}` replaced. Use at once; never store, log or print.

    Raises:
        ConfigError: a variable is not set or a file cannot be read. The message never holds a secret.
    """
    problems = tuple(Problem(key=match.group(), value="", message=message) for match in _REFERENCE.finditer(text) if (message := _missing(match)))
    if problems:
        raise ConfigError(problems)
    return _REFERENCE.sub(_value, text)


def secret_names(text: str) -> tuple[str, ...]:
    """Returns the environment variables that `text` names."""
    return tuple(match["name"] for match in _REFERENCE.finditer(text) if match["kind"] == "env")


def hide_secrets(message: str, *, text: str) -> str:
    """Returns `message` with the values of the secrets in `text` replaced by their references: what a library says may quote them."""
    for match in _REFERENCE.finditer(text):
        if match["kind"] in ("env", "file") and not _missing(match) and (value := _value(match)):
            for form in {value, unquote(value)}:
                message = message.replace(form, match.group())
    return message


def reference_problems(key: str, text: str) -> list[Problem]:
    """Returns what is wrong with the references in the value `text` of `key`: unknown kinds, unset variables, missing files, secrets without use."""
    problems: list[Problem] = []
    for match in _REFERENCE.finditer(text):
        kind, name = match["kind"], match["name"]
        if kind not in _KINDS:
            close = difflib.get_close_matches(kind, _KINDS, n=1, cutoff=0.3)
            nearest = f"${{{close[0]}:{name}}}" if close else ""
            problems.append(
                Problem(
                    key=key, value=repr(text), message="unknown reference; there are ${env:NAME}, ${file:PATH} and ${python:stdlib}", nearest=nearest
                )
            )
        elif kind == "python" and name != "stdlib":
            problems.append(Problem(key=key, value=repr(text), message="the only value of this kind is ${python:stdlib}", nearest="${python:stdlib}"))
        elif kind != "python" and key not in SECRET_KEYS:
            message = f"secrets are resolved in {' and '.join(SECRET_KEYS)} only; what is written here is stored with the run"
            problems.append(Problem(key=key, value=repr(text), message=message))
        elif message := _missing(match):
            close = difflib.get_close_matches(name, os.environ, n=1, cutoff=0.75) if kind == "env" else []
            problems.append(Problem(key=key, value=repr(text), message=message, nearest=f"${{env:{close[0]}}}" if close else ""))
    return problems


def plain_password(text: str) -> str:
    """Returns how to write the URL `text` without the password that stands in it in plain; empty when there is none."""
    try:
        parts = urlsplit(_REFERENCE.sub("", text))  # a reference may hold `/` and `@`; what is left of the password stands there in plain
        password = parts.password
    except ValueError:  # not a URL at all: judged elsewhere
        return ""
    if not parts.scheme or not password:
        return ""
    return f"{parts.scheme}://{parts.username or ''}:${{env:PASSWORD}}@{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _missing(match: re.Match[str]) -> str:
    """Returns why a reference has no value, or an empty string."""
    kind, name = match["kind"], match["name"]
    if kind == "env" and name not in os.environ:
        return f"the environment variable {name!r} is not set"
    if kind == "file" and not Path(name).expanduser().is_absolute():
        return f"the path {name!r} must be absolute: it is read by processes with other working directories"
    if kind == "file" and not os.access(Path(name).expanduser(), os.R_OK):
        return f"the file {name!r} does not exist or cannot be read"
    return ""


def _value(match: re.Match[str]) -> str:
    kind, name = match["kind"], match["name"]
    if kind == "env":
        return os.environ[name]
    if kind == "file":
        return Path(name).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
    return resolve_machine(match.group())
