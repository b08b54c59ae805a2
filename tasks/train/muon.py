"""Muon (https://kellerjordan.github.io/posts/muon): matrices move by their orthogonalised momentum, everything else by AdamW.

DeepSpeed brings a Muon of its own (0.19.8). It orthogonalises before it clips, so `gradient_clipping` bounds the sum of updates
instead of the gradients; it keeps the momentum in the gradients' number format, whole matrices on every rank that holds a part;
and its AdamW needs a compiler. This one is an ordinary optimizer that DeepSpeed drives as it drives AdamW: the gradients that
it is handed are clipped and unscaled, and its state has the layout of the fp32 weights, so checkpoints need not know it.

Shapes: R rows and C columns of a matrix, N matrices of equal shape.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

ORTHOGONAL = "orthogonal"
"""Key of a parameter group: whether its matrices move by Muon."""

RATE_FACTOR = "rate_factor"
"""Key of a parameter group: its learning rate as a multiple of the schedule's; 1 where it is absent."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, chosen for the steepest slope at 0: after five rounds singular values are near 1, not at it."""
_NUM_ROUNDS = 5
_STACKED_ELEMENTS = 1 << 24
"""Matrices that are worked on together: small ones gain by it, and large ones would only take memory."""
_ADAMW_RMS = 0.2
"""Root mean square of a typical AdamW update; Muon's are scaled to it, so that both learn at one rate (arXiv 2502.16982, section 2.2)."""


@dataclass(frozen=True)
class Piece:
    """What this rank holds of one matrix: its flattened elements [start, start + count)."""

    master: torch.Tensor
    """The fp32 tensor that the optimizer updates: the matrix itself, or a flat partition with many pieces."""
    offset: int
    """Where the piece begins in the flattened master."""
    shape: tuple[int, int]
    """The whole matrix, (R, C)."""
    start: int
    """First element."""
    count: int
    """Elements; fewer than R × C where ZeRO's partitions cut the matrix, 0 where this rank holds nothing of it."""

    @property
    def is_whole(self) -> bool:
        """Whether this rank holds the matrix alone."""
        return self.count == math.prod(self.shape)

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Returns this piece of a flat tensor laid out as the master."""
        return flat.narrow(0, self.offset, self.count)


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups that are marked `ORTHOGONAL`."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        learning_rate: float,
        rate_factor: float,
        betas: tuple[float, float],
        epsilon: float,
        dtype: torch.dtype,
    ) -> None:
        """Makes the optimizer; until `lay_out`, a step does nothing. DeepSpeed makes one at its start, on gradients of zero.

        Args:
            groups: parameter groups with `params`, `weight_decay` and `ORTHOGONAL`.
            learning_rate: until the groups' `lr` says otherwise.
            rate_factor: what the caller multiplies the orthogonal groups' rate by.
            betas: decay of the moments; Muon's momentum is the first.
            epsilon: added to AdamW's denominator.
            dtype: number format in which matrices are orthogonalised.
        """
        groups = [group | {RATE_FACTOR: rate_factor if group[ORTHOGONAL] else 1.0} for group in groups]
        super().__init__(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
        self.matrices: tuple[torch.nn.Parameter, ...] = tuple(matrix for group in groups if group[ORTHOGONAL] for matrix in group["params"])
        """The parameters that move by Muon, as the model holds them; DeepSpeed puts flat partitions into their group."""
        self._dtype = dtype
        self._is_laid_out = False
        self._pieces: dict[torch.Tensor, list[Piece]] = {}
        self._cut: dict[torch.Tensor, list[Piece]] = {}

    def lay_out(self, pieces: Sequence[Piece], *, cut: Sequence[bool]) -> None:
        """Says which matrices there are and where.

        Args:
            pieces: one for each matrix of a group, on every rank alike and in the same order.
            cut: by piece, whether any rank holds only a part of its matrix; equal on every rank.
        """
        self._is_laid_out, self._pieces, self._cut = True, {}, {}
        for piece, is_cut in zip(pieces, cut, strict=True):
            (self._cut if is_cut else self._pieces).setdefault(piece.master, []).append(piece)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the groups from their gradients. Collective where matrices are cut."""
        if not self._is_laid_out:
            return None
        for group in self.param_groups:
            if group[ORTHOGONAL]:
                self._step_matrices(group)
        with self._only_adamw() as groups:
            return super().step(closure) if groups else None

    @contextmanager
    def _only_adamw(self) -> Iterator[list[dict[str, Any]]]:
        every = self.param_groups
        self.param_groups = [group for group in every if not group[ORTHOGONAL]]
        try:
            yield self.param_groups
        finally:
            self.param_groups = every

    def _step_matrices(self, group: dict[str, Any]) -> None:
        masters = [master for master in group["params"] if master.grad is not None]
        beta, rate = group["betas"][0], group["lr"]
        updates = {}
        for master in masters:
            momentum = self.state[master]["exp_avg"]
            momentum.lerp_(master.grad, 1.0 - beta)
            updates[master] = master.grad.lerp(momentum, beta).reshape(-1)  # Nesterov's look ahead
        self._orthogonalise(updates)
        for master, update in updates.items():
            master.mul_(1.0 - rate * group["weight_decay"])
            master.add_(update.view_as(master), alpha=-rate)

    def _orthogonalise(self, updates: dict[torch.Tensor, torch.Tensor]) -> None:
        """Replaces every matrix in the flat `updates`, those of equal shape together."""
        whole = [(piece, piece.of(updates[master])) for master in updates for piece in self._pieces.get(master, []) if piece.count]
        whole += self._gathered(updates)
        by_shape: dict[tuple[int, int], list[tuple[Piece, torch.Tensor]]] = {}
        for piece, flat in whole:
            low, high = sorted(piece.shape)
            by_shape.setdefault((low, high), []).append((piece, flat))
        for (low, high), matrices in by_shape.items():
            at_once = max(1, _STACKED_ELEMENTS // (low * high))
            for first in range(0, len(matrices), at_once):
                self._replace(matrices[first : first + at_once], updates)

    def _gathered(self, updates: dict[torch.Tensor, torch.Tensor]) -> list[tuple[Piece, torch.Tensor]]:
        """Returns the matrices that are cut and of which this rank holds a part, whole and flat. Collective.

        At most one matrix per border between partitions is cut, so they travel in one small sum.
        """
        pieces = [piece for master in updates for piece in self._cut.get(master, [])]
        if not pieces:
            return []
        sizes = [math.prod(piece.shape) for piece in pieces]
        buffer = torch.zeros(sum(sizes), device=pieces[0].master.device)
        parts = list(zip(pieces, torch.split(buffer, sizes), strict=True))
        for piece, flat in parts:
            if piece.count:
                flat.narrow(0, piece.start, piece.count).copy_(piece.of(updates[piece.master]))
        dist.all_reduce(buffer)
        return [(piece, flat) for piece, flat in parts if piece.count]

    def _replace(self, matrices: Sequence[tuple[Piece, torch.Tensor]], updates: dict[torch.Tensor, torch.Tensor]) -> None:
        wide = [flat.view(piece.shape) if _is_wide(piece) else flat.view(piece.shape).mT for piece, flat in matrices]
        scale = _ADAMW_RMS * math.sqrt(max(wide[0].shape))
        for (piece, _), result in zip(matrices, orthogonalised(torch.stack(wide), dtype=self._dtype), strict=True):
            turned = (result if _is_wide(piece) else result.mT).reshape(-1)
            piece.of(updates[piece.master]).copy_(turned.narrow(0, piece.start, piece.count)).mul_(scale)


def orthogonalised(matrices: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Returns matrices with the same singular vectors, and all singular values near 1 (0.7 to 1.2), by Newton-Schulz iteration.

    Args:
        matrices: [N, R, C], R at most C.
        dtype: number format of the iteration, and of the result; bf16 is exact enough.
    """
    a, b, c = _COEFFICIENTS
    norms = matrices.norm(dim=(-2, -1), keepdim=True)
    result: torch.Tensor = (matrices / (norms + 1e-7)).to(dtype)
    for _ in range(_NUM_ROUNDS):
        gram = result @ result.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        result = torch.baddbmm(result, polynomial, result, beta=a)
    return result


def _is_wide(piece: Piece) -> bool:
    return piece.shape[0] <= piece.shape[1]
