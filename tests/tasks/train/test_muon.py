"""Muon's step on its own, without DeepSpeed: against the definition, by singular value decomposition."""

from typing import Any

import pytest

pytestmark = pytest.mark.slow  # imports torch

SHAPES = ((6, 10), (10, 6), (6, 10), (8, 8))


def _muon(matrices: list[Any], others: list[Any], **changes: Any) -> Any:
    import torch

    from tasks.train.muon import ORTHOGONAL, Muon

    groups = [{"params": matrices, "weight_decay": 0.1, ORTHOGONAL: True}, {"params": others, "weight_decay": 0.0, ORTHOGONAL: False}]
    options: dict[str, Any] = {"learning_rate": 0.01, "rate_factor": 0.5, "betas": (0.9, 0.95), "epsilon": 1e-8, "dtype": torch.float32} | changes
    muon = Muon([group for group in groups if group["params"]], **options)
    for tensor in matrices:
        muon.state[tensor]["exp_avg"] = torch.zeros_like(tensor)
    return muon


def _random(*shape: int, seed: int) -> Any:
    import torch

    return torch.nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def test_singular_values_come_near_one_and_vectors_stay() -> None:
    import torch

    from tasks.train.muon import orthogonalised

    matrices = torch.randn(5, 16, 48, generator=torch.Generator().manual_seed(1))
    for dtype, slack in ((torch.float32, 0.0), (torch.bfloat16, 0.05)):
        values = torch.linalg.svdvals(orthogonalised(matrices, dtype=dtype).float())
        assert values.min() > 0.65 - slack
        assert values.max() < 1.25 + slack
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ orthogonalised(matrices, dtype=torch.float32) @ right.mT
    assert torch.allclose(inner, torch.diag_embed(torch.diagonal(inner, dim1=-2, dim2=-1)), atol=1e-4), "the singular vectors are the same"


def test_a_step_follows_the_definition() -> None:
    """Decay, then the orthogonalised look-ahead momentum, scaled to AdamW's size; what is no matrix moves by AdamW."""
    import torch

    from tasks.train.muon import Piece

    matrix, bias, other = _random(6, 10, seed=1), _random(4, seed=2), _random(4, seed=2)
    muon, adamw = _muon([matrix], [bias]), torch.optim.AdamW([other], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    muon.lay_out([Piece(matrix, offset=0, shape=(6, 10), start=0, count=60)], cut=[False])
    momentum, weight = torch.zeros(6, 10), matrix.detach().clone()
    for number in range(3):
        matrix.grad, bias.grad = _random(6, 10, seed=10 + number).detach(), _random(4, seed=20 + number).detach()
        other.grad = bias.grad.clone()
        before, gradient = matrix.detach().clone(), matrix.grad.clone()
        muon.step()
        adamw.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        left, _, right = torch.linalg.svd(0.1 * gradient + 0.9 * momentum, full_matrices=False)
        update = (before * (1 - 0.01 * 0.1) - matrix.detach()) / (0.01 * 0.2 * 10**0.5)
        inner = left.mT @ update @ right.mT
        assert torch.allclose(inner, torch.diag(torch.diagonal(inner)), atol=1e-3)
        assert 0.65 < torch.diagonal(inner).min() < torch.diagonal(inner).max() < 1.25
    assert not torch.equal(matrix, weight)
    assert torch.equal(bias, other)


def test_a_flat_partition_moves_as_its_matrices_do() -> None:
    import torch

    from tasks.train.muon import Piece

    apart = [_random(*shape, seed=number) for number, shape in enumerate(SHAPES)]
    flat = torch.nn.Parameter(torch.cat([torch.zeros(3), *(matrix.detach().reshape(-1) for matrix in apart), torch.zeros(5)]))
    gradients = [_random(*shape, seed=100 + number).detach() for number, shape in enumerate(SHAPES)]
    offsets = [3, 63, 123, 183]
    one, other = _muon(apart, []), _muon([flat], [])
    whole = [shape[0] * shape[1] for shape in SHAPES]
    one.lay_out([Piece(m, offset=0, shape=s, start=0, count=n) for m, s, n in zip(apart, SHAPES, whole, strict=True)], cut=[False] * 4)
    other.lay_out([Piece(flat, offset=o, shape=s, start=0, count=n) for o, s, n in zip(offsets, SHAPES, whole, strict=True)], cut=[False] * 4)
    for matrix, gradient in zip(apart, gradients, strict=True):
        matrix.grad = gradient.clone()
    flat.grad = torch.cat([torch.zeros(3), *(gradient.reshape(-1) for gradient in gradients), torch.zeros(5)])
    one.step()
    other.step()
    assert torch.equal(torch.cat([matrix.detach().reshape(-1) for matrix in apart]), flat.detach()[3:-5])
    assert not flat.detach()[:3].any(), "padding does not move"


def test_before_it_knows_its_matrices_a_step_does_nothing() -> None:
    """DeepSpeed makes one at its start, which would apply weight decay."""
    import torch

    matrix = _random(6, 10, seed=1)
    before, matrix.grad = matrix.detach().clone(), torch.ones(6, 10)
    _muon([matrix], []).step()
    assert torch.equal(matrix, before)
