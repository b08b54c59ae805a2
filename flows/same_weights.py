"""The same recipe on this machine alone, on Slurm and on Kubernetes: are the weights the same, bit for bit? Needs root, and Slurm.

    make same-weights      or      .venv/bin/python -m flows.same_weights [--steps 60] [--folder .headrace/same-weights] [--set training.seed=7]

The demo's recipe is run three times, from raw text to registered model; only `cluster` differs, and where things are kept: no run finds what another
has made. Training has two ranks of one thread each: two processes here, two nodes of a Slurm cluster, two pods of a Kubernetes cluster. Both clusters
are started on this machine, one after the other, and taken down. Compared is what is left of training (weights, moments, step, generators) and of
export. Exit code 7: they differ.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.storage import open_storage
from flows.cluster_demo import demo_parser, end_at_first_signal, run_pipeline, session
from flows.figure import stage_detail, table
from flows.terminal import paint, show, show_error
from schemas.artifact import ArtifactRecord
from schemas.cluster_config import ClusterKind
from schemas.errors import VerificationError
from schemas.exit_code import ExitCode
from schemas.stage import Stage
from tasks.runs import Run, list_runs
from tasks.store import Store

_CHECKOUT = Path(__file__).resolve().parents[1]
_NAME = "same-weights"
_COMPARED: Mapping[Stage, str] = {Stage.TRAIN: "weights, moments, step and generators", Stage.EXPORT: "weights as safetensors, and their tokenizer"}
_TO_STOP_S = 180.0
"""Longest wait for a demo that was asked to stop: the pipeline ends before its cluster does."""

Made = Mapping[Stage, ArtifactRecord]
"""What a pipeline made, by stage."""


def main() -> int:
    """Runs the recipe everywhere, and shows what came of it. Returns 0, 7 when that differs, or the code of the first run that failed."""
    arguments = demo_parser(__doc__ or "", folder=_CHECKOUT / ".headrace" / _NAME, steps=60).parse_args()
    folder: Path = arguments.folder.resolve()
    end_at_first_signal()
    try:
        for kind in ClusterKind:
            show(["", paint(f"cluster.kind: {kind.value}", "bold")])
            code = _run_on(kind, folder / kind.value, steps=arguments.steps, assignments=(f"name={_NAME}", *arguments.assignments))
            if code != 0:
                show(f"error: the run on {kind.value} ended with {code}: nothing is compared", stream=sys.stderr)
                return code
        made = {kind: newest_made(folder / kind.value) for kind in ClusterKind}
        show(["", *comparison_screen(made)])
        check_equal(made, folder=folder)
    except VerificationError as error:
        show_error(error, as_json=False)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.CTRL_C)
    show(paint("equal, bit for bit", "green"))
    return 0


def _run_on(kind: ClusterKind, folder: Path, *, steps: int, assignments: Sequence[str]) -> int:
    """Runs the pipeline and returns its exit code. A cluster's demo is a program of its own, which starts the cluster and takes it down."""
    if kind is ClusterKind.LOCAL:
        return run_pipeline(folder, steps=steps, changes={}, assignments=assignments, variables={})
    options = ("--calm", "--steps", str(steps), "--folder", str(folder), *(word for assignment in assignments for word in ("--set", assignment)))
    with session((sys.executable, str(_CHECKOUT / f"infra/{kind.value}/demo.py"), *options), environment=os.environ, to_stop_s=_TO_STOP_S) as demo:
        return demo.wait()


def newest_made(folder: Path) -> Made:
    """Returns what the newest run in a folder made, of what is compared."""
    storage = open_storage(str(folder / "data"))
    run, store = Run(storage, list_runs(storage)[0]), Store(storage)
    pointers = {stage: run.pointer(stage) for stage in _COMPARED}
    return {stage: store.read(pointer.key) for stage, pointer in pointers.items() if pointer is not None}


def comparison_screen(made: Mapping[ClusterKind, Made]) -> list[str]:
    """Returns the content hashes, beneath each other."""
    lines = []
    for stage, what in _COMPARED.items():
        rows = [(kind.value, records[stage].content_hash, stage_detail(stage, records[stage].summary)) for kind, records in made.items()]
        lines += [f"{stage.value}: {what}", *(f"  {line}" for line in table(rows))]
    return lines


def check_equal(made: Mapping[ClusterKind, Made], *, folder: Path) -> None:
    """Raises VerificationError, with everything that differs from the first, when not all made the same of the same recipe."""
    (first, expected), *others = made.items()
    findings = []
    for stage in _COMPARED:
        for kind, records in others:
            if records[stage].fingerprint != expected[stage].fingerprint:
                findings.append(f"{stage.value} on {kind.value} is of another recipe or text than on {first.value}")
            if records[stage].content_hash != expected[stage].content_hash:
                findings.append(f"{stage.value} on {kind.value}: {records[stage].content_hash}; on {first.value}: {expected[stage].content_hash}")
    if findings:
        raise VerificationError(tuple(findings), subject="one recipe, several clusters", mend=f"all that was made is below {folder}")


if __name__ == "__main__":
    raise SystemExit(main())
