"""An evaluated model, and the works that register it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from schemas.artifact import ArtifactRecord, Provenance
from schemas.config import RunConfig
from schemas.stage import Stage
from tasks.evaluate.build import build as build_evaluation
from tasks.store import Store
from tests.fakes.in_process_work import InProcessWork, commit, config_with
from tests.fakes.model_chain import Chain, make_chain

RegisterWork = Callable[..., InProcessWork]


@dataclass
class BenchOfTests:
    """What `register` asks of its bench."""

    store: Store
    run_id: str
    run_name: str = "demo-7f3a"
    provenance: Provenance = field(
        default_factory=lambda: Provenance(run_id="", created_at="", created_by="me@here", argv=(), commit="c0ffee", versions={})
    )


@dataclass
class RegisteringWork(InProcessWork):
    """`InProcessWork` with a bench."""

    run_id: str = "demo-20260101t000000-7f3a"

    @property
    def bench(self) -> BenchOfTests:
        return BenchOfTests(store=Store(self.storage), run_id=self.run_id)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Artifacts from text to an evaluation, made once."""
    chain = make_chain(tmp_path_factory.mktemp("evaluated"))
    work = chain.work(Stage.EVALUATE)
    record: ArtifactRecord = commit(chain.root, Stage.EVALUATE, build_evaluation(work), key=work.key)
    chain.finish(Stage.EVALUATE, record)
    return chain


@pytest.fixture
def register_work(evaluated: Chain, tmp_path: Path) -> RegisterWork:
    """Returns a function that makes works on a copy of the artifacts; keywords are config sections, `key` and `run_id`."""
    root = tmp_path / "root"
    shutil.copytree(evaluated.root, root)

    def make(*, key: str = "register/test-000000000000", run_id: str = "demo-20260101t000000-7f3a", **sections: Any) -> InProcessWork:
        config: RunConfig = config_with(**{"state": str(tmp_path / "my state"), **sections})
        inputs = {stage: evaluated.records[stage] for stage in (Stage.EXPORT, Stage.EVALUATE)}
        return RegisteringWork(root, Stage.REGISTER, config, inputs, key=key, run_id=run_id)

    return make
