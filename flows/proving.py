"""`headrace verify-resume`: proves on a recipe's own training that restarts lose nothing, and says what it found."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.launchers import launcher_for
from flows.figure import incident_line, ledger_line, of_seconds
from flows.piloting import load_checked
from flows.terminal import paint, show, show_json
from schemas.errors import ConfigError, InputError, Problem, VerificationError
from schemas.recipe import LoadedRecipe
from tasks.elastic_plan import of_ranks

if TYPE_CHECKING:
    from tasks.elastic_proof import ElasticProof
    from tasks.elastic_training import Transition
    from tasks.resume_proof import ResumeProof
    from tasks.runs import Run
    from tasks.scratch_training import Audience, Origin

DEFAULT_KILLS = 2
"""Kills of a proof at one world size."""
_MEND = "--keep leaves all trainings for comparison"


def prove(recipe: Path, assignments: Sequence[str], *, kills: int | None, world: str | None, seed: int, keep: bool, as_json: bool) -> None:
    """Proves that restarts lose nothing: with kills at one world size, or from one world size to the next.

    Raises:
        ConfigError: options or recipe do not fit together; before anything is made or started.
        VerificationError: what was to be proven is not so.
    """
    loaded = load_checked(recipe, assignments)
    if world is not None and kills is not None:
        raise ConfigError((Problem("--kills", str(kills), "has no effect with --world, which kills once between two sizes"),))
    launcher_for(loaded.config)
    if world is None:
        _prove_kills(loaded, kills=DEFAULT_KILLS if kills is None else kills, seed=seed, keep=keep, as_json=as_json)
    else:
        _prove_sizes(loaded, world_sizes=parse_sizes(world), seed=seed, keep=keep, as_json=as_json)


def parse_sizes(text: str) -> tuple[int, ...]:
    """Returns the world sizes of `2,1,3`. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError((Problem("--world", repr(text), "wants numbers of ranks, with commas between them", nearest="2,1,2"),))
    return tuple(int(part) for part in parts)


def _prove_kills(loaded: LoadedRecipe, *, kills: int, seed: int, keep: bool, as_json: bool) -> None:
    from tasks.resume_proof import prove_resume

    proof = prove_resume(_origin(loaded), kills=kills, seed=seed, audience=_audience(loaded, as_json=as_json), keep=keep)
    if as_json:
        show_json({**proof.model_dump(mode="json"), "equal": proof.equal})
    else:
        show(kills_screen(proof))
    if not proof.equal:
        findings = (f"calm:      {proof.calm_hash}, ids {proof.calm_ids}", f"disturbed: {proof.disturbed_hash}, ids {proof.disturbed_ids}")
        raise VerificationError(findings, subject=f"{loaded.config.name}: the killed training ended elsewhere", mend=_MEND)
    if len(proof.kills) < kills:
        raise InputError(
            f"only {len(proof.kills)} of {kills} kills came in time", why="the training was over before", mend="more steps, or fewer kills"
        )
    if not as_json:
        show(paint("equal, byte for byte: weights, moments, step and generators, made from the same sequences", "green"))


def _prove_sizes(loaded: LoadedRecipe, *, world_sizes: tuple[int, ...], seed: int, keep: bool, as_json: bool) -> None:
    from tasks.elastic_plan import check_sizes
    from tasks.elastic_proof import prove_elastic

    check_sizes(loaded.config, world_sizes)
    proof = prove_elastic(_origin(loaded), world_sizes=world_sizes, seed=seed, audience=_audience(loaded, as_json=as_json), keep=keep)
    if as_json:
        show_json({**proof.model_dump(mode="json"), "findings": list(proof.findings), "proven": not proof.findings})
    else:
        show(sizes_screen(proof))
    if proof.findings:
        raise VerificationError(proof.findings, subject=f"{loaded.config.name}: other numbers of ranks train otherwise", mend=_MEND)
    if not as_json:
        show(paint("proven: every size goes on with the very state and the very sequences, and ends as well", "green"))


def _origin(loaded: LoadedRecipe) -> "Origin":
    from flows.conduct import prepare_environment
    from tasks.scratch_training import Origin

    prepare_environment(Path(loaded.config.state), ambient=False)
    return Origin(loaded.config, project_dir=loaded.project_dir, recipe=str(loaded.path))


def _audience(loaded: LoadedRecipe, *, as_json: bool) -> "Audience":
    """Whoever sits at the terminal: stdout, or stderr where stdout is for a machine."""
    from flows.follow import following
    from tasks.scratch_training import Audience

    stream = sys.stderr if as_json else sys.stdout
    for warning in loaded.warnings:
        show(f"warning: {warning}", stream=sys.stderr)

    def watch(run: "Run") -> AbstractContextManager[None]:
        return following(run, stream=stream)

    return Audience(note=lambda line: show(line, stream=stream), watch=watch)


# ---- screens. Pure ------------------------------------------------------------------------------------------------------


def kills_screen(proof: "ResumeProof") -> list[str]:
    """Returns what a proof with kills found: each kill, what it cost, and the hashes."""
    lines = [incident_line({**kill.model_dump(), "committed_step": kill.resumed_from, "cause": "killed"}) for kill in proof.kills]
    took = f"{of_seconds(proof.calm_s)} undisturbed, {of_seconds(proof.disturbed_s)} with kills"
    return [
        *(f"  {line}" for line in lines),
        f"  {proof.steps} steps on {of_ranks(proof.world_size)}: {took}",
        f"  undisturbed  {ledger_line(proof.calm_ledger)}",
        f"  killed       {ledger_line(proof.ledger)}",
        "  weights",
        f"    undisturbed  {proof.calm_hash}",
        f"    killed       {proof.disturbed_hash}",
        "  consumed ids, of all steps",
        f"    prescribed   {proof.prescribed_ids}",
        f"    undisturbed  {proof.calm_ids}",
        f"    killed       {proof.disturbed_ids}",
    ]


def sizes_screen(proof: "ElasticProof") -> list[str]:
    """Returns what an elastic proof found: each change of size, the sequences, and where it ends."""
    lines = [f"  {line}" for transition in proof.transitions for line in _transition_lines(transition, proof)]
    lines += [
        f"  {proof.steps} steps, micro-batch {proof.micro_batch_size}, {proof.precision.value}",
        f"  resized      {ledger_line(proof.ledger)}",
        "  consumed ids, of all steps",
        f"    prescribed   {proof.prescribed_ids}",
        f"    undisturbed  {proof.calm_ids}",
        f"    resized      {proof.resized_ids}",
    ]
    if proof.validation_loss is not None:
        losses = ", ".join(f"{loss:.4f}" for loss in proof.calm_validation_losses)
        apart = abs(proof.validation_loss - proof.calm_validation_losses[0])
        lines += [
            f"  validation loss {proof.validation_loss:.4f}, {apart:.4f} from the undisturbed one of the same seed",
            f"    undisturbed, by seed: {losses}; they are {proof.seed_spread:.4f} apart",
        ]
    return lines


def _transition_lines(transition: "Transition", proof: "ElasticProof") -> list[str]:
    killed = f"rank {transition.killed_rank} killed at step {transition.killed_at}"
    head = f"{transition.was} → {of_ranks(transition.now)}: {killed}, goes on from step {transition.resumed_from}"
    state = f"  state        {transition.committed_state} committed, {transition.loaded_state or 'none'} loaded"
    return [head, state, f"  first loss   {_losses(transition, proof)}"]


def _losses(transition: "Transition", proof: "ElasticProof") -> str:
    if transition.loss_before is None or transition.loss_after is None:
        return "not measured on both sides"
    allowed = "not judged: the model has dropout" if proof.has_dropout else f"{proof.tolerance:g} is allowed"
    return f"{transition.loss_before:.6f} before, {transition.loss_after:.6f} after, {transition.loss_difference:.1e} apart; {allowed}"
