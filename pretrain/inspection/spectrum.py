"""Singular values: all of a small matrix; the largest of a large one, with an error bound.

- exact ...... eigenvalues of the Gram matrix of the shorter side, in fp64: errors below 1e-7 of the largest value
- largest .... block subspace iteration from random vectors (Halko et al. 2011, https://arxiv.org/abs/0909.4061,
               algorithm 4.4), in fp32. Each value is a lower bound, and a singular value lies within its residual ‖Aᵀu − σv‖
               (Parlett 1998, "The Symmetric Eigenvalue Problem", theorem 4.5.1, for the Jordan–Wielandt matrix)

Stable rank: ‖W‖²_F / σ₁² (Rudelson & Vershynin 2007, https://arxiv.org/abs/math/0503442). Effective rank: the exponential
of the entropy of σ / Σσ (Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality"); it needs all
values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_UP_TO = 2048
LARGEST = 16
OVERSAMPLING = 16
ITERATIONS = 12
_ROWS = 8192  # rows converted to fp64 at a time


@dataclass(frozen=True)
class Spectrum:
    """Singular values in descending order. `error` bounds the relative error of the first."""

    values: Tensor
    exact: bool
    error: float
    stable_rank: float
    effective_rank: float | None


def spectrum(weight: Tensor, exact_up_to: int = EXACT_UP_TO) -> Spectrum:
    """Spectrum of a finite matrix; all values if its shorter side is at most `exact_up_to`."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    exact = tall.shape[1] <= exact_up_to
    values, error = (_exact_values(tall), 1e-7) if exact else _largest_values(tall)
    squares = float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2
    top = float(values[0])
    if top == 0.0:
        return Spectrum(values, exact, 0.0, 0.0, 0.0)
    return Spectrum(values, exact, error, squares / top**2, _effective_rank(values) if exact else None)


def _exact_values(tall: Tensor) -> Tensor:
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for rows in tall.split(_ROWS):
        part = rows.double()
        gram.addmm_(part.T, part)
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)


def _largest_values(tall: Tensor) -> tuple[Tensor, float]:
    generator = torch.Generator().manual_seed(0)
    width = min(LARGEST + OVERSAMPLING, tall.shape[1])
    right = torch.randn(tall.shape[1], width, generator=generator).to(tall.dtype)
    for _ in range(ITERATIONS):
        left = torch.linalg.qr(tall @ right).Q
        right = torch.linalg.qr(tall.T @ left).Q
    # Rayleigh-Ritz: the best approximations within the subspace.
    projected = tall @ right
    left, values, small = torch.linalg.svd(projected, full_matrices=False)
    vectors = right @ small.mT
    residual = torch.linalg.vector_norm(tall.T @ left[:, 0] - values[0] * vectors[:, 0])
    return values[:LARGEST].double(), float(residual / values[0].clamp_min(1e-30))


def _effective_rank(values: Tensor) -> float:
    shares = values / values.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))
