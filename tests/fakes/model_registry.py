"""A model registry in memory that keeps MLflow's habits: no unique key, numbers never given twice, nothing transactional."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tasks.register.registry import ROOT_HASH_TAG


class CrashError(Exception):
    """The process died here."""


@dataclass
class Version:
    """A registered version."""

    model_id: str
    tags: Mapping[str, str]


@dataclass
class FakeRegistry:
    """Fulfils `tasks.register.registry.VersionStore`. `before` is called with the name of each operation, and may raise or wait."""

    before: Callable[[str], None] = lambda operation: None
    existing: dict[str, dict[int, Version]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], int] = field(default_factory=dict)
    logged: dict[str, str] = field(default_factory=dict)
    """Root hash by model id."""
    given: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def versions(self, model_name: str, *, root_hash: str) -> tuple[int, ...]:
        self.before("versions")
        with self.lock:
            found = self.existing.get(model_name, {})
            return tuple(sorted(number for number, version in found.items() if version.tags[ROOT_HASH_TAG] == root_hash))

    def find_model(self, *, root_hash: str) -> str | None:
        self.before("find_model")
        return next((model_id for model_id, own in self.logged.items() if own == root_hash), None)

    def log_model(self, root_hash: str) -> str:
        self.before("log_model")
        with self.lock:
            model_id = f"m-{len(self.logged)}"
            self.logged[model_id] = root_hash
        self.before("logged")
        return model_id

    def create_version(self, model_name: str, *, model_id: str, tags: Mapping[str, str], description: str) -> int:
        self.before("create_version")
        with self.lock:
            number = self.given[model_name] = self.given.get(model_name, 0) + 1
            self.existing.setdefault(model_name, {})[number] = Version(model_id, tags)
        self.before("created")
        return number

    def delete_version(self, model_name: str, version: int) -> None:
        self.before("delete_version")
        with self.lock:
            self.existing[model_name].pop(version, None)
        self.before("deleted")

    def model_of(self, model_name: str, version: int) -> str:
        self.before("model_of")
        return self.existing[model_name][version].model_id

    def content_of(self, model_name: str, version: int) -> str | None:
        self.before("content_of")
        found = self.existing.get(model_name, {}).get(version)
        return None if found is None else found.tags.get(ROOT_HASH_TAG, "")

    def alias(self, model_name: str, alias: str) -> int | None:
        self.before("alias")
        return self.aliases.get((model_name, alias))

    def set_alias(self, model_name: str, alias: str, *, version: int) -> None:
        self.before("set_alias")
        assert version in self.existing[model_name]
        self.aliases[model_name, alias] = version
        self.before("aliased")
