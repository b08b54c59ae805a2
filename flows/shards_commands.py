"""`headrace shards`: token shards to other programs' formats, and back. Thin, like `flows.cli`."""

from pathlib import Path
from typing import Annotated

import typer

from schemas.split import Split

shards = typer.Typer(
    name="shards",
    help="Token shards to Megatron's format, and back.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]
SplitOption = Annotated[Split, typer.Option("--split", help="The split that is written, or that the documents are for.")]


@shards.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A `tokenize` artifact, or imported shards.", show_default=False)],
    to: Annotated[Path, typer.Option("--to", metavar="PREFIX", help="Writes PREFIX.bin and PREFIX.idx; neither may exist.", show_default=False)],
    split: SplitOption = "train",
    as_json: JsonOption = False,
) -> None:
    """Write a split as an indexed data set of Megatron-LM: one sequence per document, the end-of-text token included.

    \b
    Examples:
      headrace shards export .headrace/data/tokenize/demo-0123456789ab --to out/train
      headrace shards export .headrace/data/tokenize/demo-0123456789ab --to out/valid --split validation --json
    """  # noqa: D301
    from flows.terminal import show, show_json
    from tasks.tokenize.megatron import export_split

    written = export_split(folder, split=split, prefix=to)
    if as_json:
        show_json({"documents": written.documents, "tokens": written.tokens, "files": [f"{to}.bin", f"{to}.idx"]})
    else:
        show(f"wrote {to}.bin and {to}.idx: {written.documents:,} documents, {written.tokens:,} tokens")


@shards.command("import")
def import_(
    prefix: Annotated[Path, typer.Argument(metavar="PREFIX", help="Path of PREFIX.bin and PREFIX.idx.", show_default=False)],
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", metavar="PATH", help="The tokenizer.json that made the ids, or its folder.", show_default=False)
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new folder for shards and manifest.", show_default=False)],
    end_of_text: Annotated[str, typer.Option("--end-of-text", metavar="TOKEN", help="The tokenizer's token between documents.")] = "<|endoftext|>",
    sequence_length: Annotated[int, typer.Option("--sequence-length", min=8, help="Tokens of a sequence.")] = 1024,
    sequences_per_shard: Annotated[int, typer.Option("--sequences-per-shard", min=1, help="Sequences of a shard.")] = 8192,
    split: SplitOption = "train",
    as_json: JsonOption = False,
) -> None:
    """Make token shards of an indexed data set of Megatron-LM: documents are packed as `tokenize` packs them.

    \b
    Examples:
      headrace shards import out/train --tokenizer gpt2/tokenizer.json --to shards
      headrace shards import out/train --tokenizer llama/tokenizer.json --end-of-text '</s>' --sequence-length 4096 --to shards
    """  # noqa: D301
    from flows.figure import counted
    from flows.terminal import show, show_json
    from tasks.tokenize.megatron import import_dataset

    manifest = import_dataset(
        prefix,
        tokenizer=tokenizer,
        end_of_text=end_of_text,
        folder=to,
        split=split,
        sequence_length=sequence_length,
        sequences_per_shard=sequences_per_shard,
    )
    tokens, sequences = (sum(getattr(shard, name) for shard in manifest.shards) for name in ("tokens", "rows"))
    if as_json:
        show_json({"tokens": tokens, "sequences": sequences, "shards": len(manifest.shards), "manifest": str(to / "manifest.json")})
    else:
        made = f"{tokens:,} tokens in {sequences:,} sequences, {counted(len(manifest.shards), noun='shard')}"
        show(f"wrote {to}: {made}; read them with `tasks.train.torch_dataset`")
