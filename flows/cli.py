"""The command line. Thin: each command reads its arguments, calls one story or question, and prints the answer.

Nothing slow is imported here: `headrace run` on a finished pipeline answers in a fraction of a second.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.shards_commands import shards
from flows.store_commands import store
from schemas.errors import HeadraceError, storage_failure
from schemas.exit_code import ExitCode
from schemas.stage import Stage

app = typer.Typer(
    name="headrace",
    help="Raw text to a registered language model, on a laptop or a cluster, surviving both.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 our bug, 2 wrong config or usage, 3 data verdict, 4 gate, 5 stopped by policy, 6 out of memory, "
    "7 verification failed, 8 another writer, 9 unreachable, 75 interrupted (resumable), 130 Ctrl-C.",
)

app.add_typer(shards)
app.add_typer(store)

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: one YAML file.", show_default=False)]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its short name (demo-7f3a), or `last`.", show_default=False)]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; VALUE is YAML. May be repeated.")
]
FromOption = Annotated[Stage | None, typer.Option("--from", metavar="STAGE", help="Rebuild this stage and all that follow it.")]
StorageOption = Annotated[str | None, typer.Option("--storage", metavar="URL", help="Storage root to look into. Default: those of this project.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        from flows.terminal import show

        show(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    _version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Options of the program itself. Each acts by its callback."""


@app.command()
def init(
    recipe: Annotated[Path, typer.Argument(metavar="FILE", help="The recipe to write; must not exist.", show_default=False)],
    text: Annotated[
        str, typer.Option("--text", metavar="PATH", help="Your text: a file, glob or folder of .jsonl[.gz|.zst], .parquet, .csv, .txt, code.")
    ],
    model: Annotated[Path | None, typer.Option("--model", metavar="FOLDER", help="Start from a model in Hugging Face layout.")] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", metavar="FOLDER", help="Use an existing tokenizer.")] = None,
    deepspeed: Annotated[Path | None, typer.Option("--deepspeed", metavar="JSON", help="Take further options from a DeepSpeed file.")] = None,
    cluster: Annotated[str, typer.Option("--cluster", metavar="KIND", help="local, slurm or kubernetes.")] = "local",
    as_json: JsonOption = False,
) -> None:
    """Write a commented recipe for your own text, sized for how much there is.

    \b
    Examples:
      headrace init my.yaml --text ~/books
      headrace init my.yaml --text 'data/*.jsonl.zst' --tokenizer ./gpt2 --cluster slurm
      headrace init my.yaml --text notes.parquet --model ./llama-160m --deepspeed ds.json
    """  # noqa: D301
    from flows.starter import write_recipe
    from flows.terminal import show, show_json

    written = write_recipe(recipe, text=text, model=model, tokenizer=tokenizer, deepspeed=deepspeed, cluster=cluster)
    if as_json:
        show_json(written)
    else:
        first, *others = written["next"]
        show([f"wrote {written['recipe']}: {written['summary']}", f"next: {first}", *(f"      {command}" for command in others)])


@app.command()
def plan(recipe: RecipeArgument, assignments: SetOption = None, from_stage: FromOption = None, as_json: JsonOption = False) -> None:
    """Show what a run would do and why, and every derived number. Nothing is run.

    \b
    Examples:
      headrace plan infra/recipes/demo_cpu.yaml
      headrace plan my.yaml --set training.steps=5000 --set cluster.nodes=4
      headrace plan my.yaml --from train --json
    """  # noqa: D301
    from flows.piloting import load_checked, plan_checked
    from flows.screens import plan_screen
    from flows.terminal import show, show_json
    from schemas.cluster_config import ClusterKind

    loaded = load_checked(recipe, assignments or ())
    on_a_cluster = loaded.config.cluster.kind is not ClusterKind.LOCAL  # whose volumes a desk need not mount
    planned = plan_checked(loaded, from_stage=from_stage, text_may_be_elsewhere=on_a_cluster)
    if as_json:
        show_json({**planned.model_dump(mode="json"), "warnings": [*loaded.warnings, *planned.warnings]})
        return
    show(plan_screen(planned, config=loaded.config, warnings=loaded.warnings))


@app.command()
def run(recipe: RecipeArgument, assignments: SetOption = None, from_stage: FromOption = None, as_json: JsonOption = False) -> None:
    """Run the pipeline. Finished stages are found again by content; a running job of the same training is adopted.

    \b
    Examples:
      headrace run infra/recipes/demo_cpu.yaml
      headrace run my.yaml --set training.steps=50
      headrace run my.yaml --set 'corpus.sources=["docs.jsonl.gz", "s3://bucket/raw/"]' --set storage.root=/data/headrace
      headrace run my.yaml --from train
    """  # noqa: D301
    from flows.piloting import run_recipe

    run_recipe(recipe, assignments or (), from_stage=from_stage, as_json=as_json)


@app.command(hidden=True)
def demo(as_json: JsonOption = False) -> None:
    """Run the demo: the whole pipeline on Python's standard library, with one rank killed on the way (DEMO_KILL=0: without).

    \b
    Example:
      headrace demo
    """  # noqa: D301
    from flows.piloting import run_demo

    run_demo(as_json=as_json)


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id, its short name, or `last`. Default: all runs.", show_default=False)
    ] = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all runs, or one: its stages, attempts, step, loss, time to go, incidents, and what training's time was spent on.

    \b
    Examples:
      headrace status
      headrace status last
      headrace status demo-7f3a --json
    """  # noqa: D301
    from flows.lookup import all_runs, find_run, storages
    from flows.screens import runs_screen, status_screen
    from flows.terminal import show, show_json
    from tasks.views import in_detail, view_of

    if name is not None:
        run = find_run(name, storage=storage)
        view = in_detail(view_of(run), storage=run.storage)
        if as_json:
            show_json(view)
        else:
            show(status_screen(view))
        return
    views = [view_of(found) for found in all_runs(storages(storage))]
    if as_json:
        show_json(views)
    else:
        show(runs_screen(views))


@app.command()
def logs(
    name: RunArgument,
    rank: Annotated[int | None, typer.Option("--rank", min=0, help="One rank, or work item. Default: all.")] = None,
    stage: Annotated[Stage | None, typer.Option("--stage", metavar="STAGE", help="Default: the stage that runs, failed, or ran last.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=0, help="Only the last so many lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while the run works.")] = False,
    storage: StorageOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line, for machines.")] = False,
) -> None:
    """Print what a run's ranks and work items wrote.

    \b
    Examples:
      headrace logs last
      headrace logs demo-7f3a --stage train --rank 1 -n 50
      headrace logs last --follow
    """  # noqa: D301
    import json

    from flows.logs_of import log_lines
    from flows.lookup import find_run

    for line in log_lines(find_run(name, storage=storage), stage=stage, rank=rank, last=lines, follow=follow):
        if as_json:
            print(json.dumps({"epoch": line.epoch, "rank": line.rank, "text": line.text}), flush=follow)
        else:
            print(f"e{line.epoch} r{line.rank} {line.text}" if rank is None else line.text, flush=follow)


@app.command()
def resume(name: RunArgument, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Go on with a run from what is committed. A job that still works is adopted, not started twice.

    \b
    Examples:
      headrace resume last
      headrace resume demo-7f3a
    """  # noqa: D301
    from flows.piloting import resume_run

    resume_run(name, storage=storage, as_json=as_json)


@app.command()
def cancel(
    name: RunArgument,
    storage: StorageOption = None,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for the end; 0: only ask.")] = 120.0,
    force: Annotated[bool, typer.Option("--force", help="Also a run that another user began.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Stop a run gracefully: its jobs commit and end, and it can be resumed.

    \b
    Examples:
      headrace cancel last
      headrace cancel demo-7f3a --wait 0
    """  # noqa: D301
    from flows.piloting import cancel_run

    cancel_run(name, storage=storage, wait_s=wait, force=force, as_json=as_json)


@app.command()
def verify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="NAME, NAME@ALIAS, NAME/VERSION, a run, or an artifact's folder.", show_default=False)
    ],
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hash everything again, from a registered model back to the raw files. Exit code 7 and the file's name on any damage.

    \b
    Examples:
      headrace verify models:/demo@champion
      headrace verify demo/3
      headrace verify last --json
    """  # noqa: D301
    from flows.piloting import verify_stored

    verify_stored(model, storage=storage, as_json=as_json)


@app.command("verify-resume")
def verify_resume(
    recipe: RecipeArgument,
    kills: Annotated[int | None, typer.Option("--kills", min=1, help="How many ranks to kill, one after another. Default: 2.")] = None,
    world: Annotated[
        str | None, typer.Option("--world", metavar="N,N,…", help="Go on at these numbers of ranks, one after another, instead.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides when, and whom.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave all trainings in the state folder.")] = False,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove on your recipe that restarts lose nothing: train scratch copies, undisturbed and with kills, and compare every byte.

    With --world, the killed copy goes on at another number of ranks each time: the same state, the same sequences, as good an end.

    \b
    Examples:
      headrace verify-resume infra/recipes/demo_cpu.yaml --kills 2 --set training.steps=60
      headrace verify-resume infra/recipes/demo_cpu.yaml --world 2,1,2 --set training.steps=200
    """  # noqa: D301
    from flows.proving import prove

    prove(recipe, assignments or (), kills=kills, world=world, seed=seed, keep=keep, as_json=as_json)


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME or NAME@ALIAS of a registered model.", show_default=False)],
    alias: Annotated[str | None, typer.Option("--alias", metavar="ALIAS", help="The alias to move back. Default: champion.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Move nothing; show every move so far.")] = False,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point a registered model's alias back to the version before. Again goes further back; no version is removed.

    \b
    Examples:
      headrace rollback demo
      headrace rollback models:/demo@champion --json
      headrace rollback demo --history
    """  # noqa: D301
    from flows.rollback import roll_back, show_moves

    act = show_moves if history else roll_back
    act(model, alias=alias, storage=storage, as_json=as_json)


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Check for this recipe's storage, state and cluster.", show_default=False)
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="KIND", help="Check for this kind: local, slurm or kubernetes. Default: the recipe's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine and its cluster: packages, memory, disk, ports, what the storage's file system promises, whether Slurm would take the jobs.

    Each finding comes with its mend. Nothing is changed, and nothing submitted.

    \b
    Examples:
      headrace doctor
      headrace doctor --cluster slurm
      headrace doctor infra/recipes/llama_1b3_slurm_4x8.yaml
    """  # noqa: D301
    from flows.checkup import report

    if not report(recipe, cluster=cluster, as_json=as_json):
        raise typer.Exit(ExitCode.USAGE)


@app.command()
def deploy(
    pool: Annotated[str | None, typer.Option("--pool", help="Only deployments of this work pool.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Create missing work pools on your Prefect server (PREFECT_API_URL), then deploy what infra/prefect.yaml describes.

    \b
    Examples:
      PREFECT_API_URL=http://127.0.0.1:4200/api headrace deploy
      headrace deploy --pool headrace
    """  # noqa: D301
    from flows.deployment import deploy_all
    from flows.terminal import show, show_json

    deployed = deploy_all(pool=pool)
    if as_json:
        show_json(deployed)
    else:
        show(f"deployed {', '.join(deployed['deployments'])} to {', '.join(deployed['pools'])}")


def main() -> None:
    """Runs the command line and ends the process with one of the documented exit codes."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.CTRL_C))
    except Exception as error:  # noqa: BLE001  # the process's outermost edge: nobody should have to read a traceback
        from flows.terminal import show_bug, show_error

        told = storage_failure(error) if isinstance(error, OSError) else error
        if isinstance(told, HeadraceError):
            show_error(told, as_json="--json" in sys.argv[1:])
            sys.exit(int(told.exit_code))
        show_bug(error)
        sys.exit(int(ExitCode.BUG))
