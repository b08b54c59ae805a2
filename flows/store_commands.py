"""`headrace store`: what the store holds, pins, and removing what nobody wants any more. Thin, like `flows.cli`."""

from typing import Annotated

import typer

store = typer.Typer(
    name="store",
    help="What the store holds, what stays and why; remove the rest.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

StorageOption = Annotated[str | None, typer.Option("--storage", metavar="URL", help="Storage root to look into. Default: those of this project.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Also what belongs to other users.")]
KeepRunsOption = Annotated[int, typer.Option("--keep-runs", metavar="N", min=0, help="How many of each user's newest runs keep what they use.")]
KEEP_RUNS = 10


@store.command()
def ls(storage: StorageOption = None, keep_runs: KeepRunsOption = KEEP_RUNS, as_json: JsonOption = False) -> None:
    """List every artifact: whose it is, how old, and why it stays.

    \b
    Examples:
      headrace store ls
      headrace store ls --storage /shared/headrace --json
    """  # noqa: D301
    from flows.store_keeping import list_stores

    list_stores(storage=storage, keep_runs=keep_runs, measured=False, as_json=as_json)


@store.command()
def du(storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Show what takes the disk: bytes and files by artifact and by user. A file that several artifacts share counts once.

    \b
    Examples:
      headrace store du
      headrace store du --json
    """  # noqa: D301
    from flows.store_keeping import list_stores

    list_stores(storage=storage, keep_runs=KEEP_RUNS, measured=True, as_json=as_json)


@store.command()
def pin(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="A run, NAME, NAME@ALIAS or NAME/VERSION of a model, or an artifact's folder.", show_default=False)
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for whoever wonders later.")] = "",
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep something, and all it was made from, until it is unpinned.

    \b
    Examples:
      headrace store pin demo-7f3a --reason paper
      headrace store pin models:/demo/3
      headrace store pin tokenize/demo-0123456789ab
    """  # noqa: D301
    from flows.store_keeping import pin_what

    pin_what(what, reason=reason, storage=storage, as_json=as_json)


@store.command()
def unpin(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A pin's number, what was pinned, or an artifact's folder.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Also pins of other users.")] = False,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take pins out again.

    \b
    Examples:
      headrace store unpin 3
      headrace store unpin demo-7f3a --force
    """  # noqa: D301
    from flows.store_keeping import unpin_what

    unpin_what(what, force=force, storage=storage, as_json=as_json)


@store.command("give-up")
def give_up(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its short name (demo-7f3a), or `last`.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Also a run that another user began.")] = False,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give up a run that did not finish and never will: it keeps nothing any more. What is still there when it is resumed is used.

    \b
    Examples:
      headrace store give-up demo-7f3a
      headrace store give-up last --json
    """  # noqa: D301
    from flows.store_keeping import give_up as given_up

    given_up(name, storage=storage, force=force, as_json=as_json)


@store.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; show what would go, and why the rest stays.")] = False,
    keep_runs: KeepRunsOption = KEEP_RUNS,
    force: ForceOption = False,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what nothing keeps: no registered model, alias, pin, unfinished or recent run, and nobody at work on it.

    \b
    Examples:
      headrace store gc --dry-run
      headrace store gc --keep-runs 3
      headrace store gc --storage /shared/headrace --force --json
    """  # noqa: D301
    from flows.store_keeping import collect_stores

    collect_stores(storage=storage, keep_runs=keep_runs, force=force, dry_run=dry_run, as_json=as_json)
