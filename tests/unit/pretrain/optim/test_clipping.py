import math

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.optim.clipping import clip_gradients


def parameters_with(*gradients: torch.Tensor | None) -> list[nn.Parameter]:
    made = []
    for gradient in gradients:
        made.append(nn.Parameter(torch.zeros(() if gradient is None else gradient.shape)))
        made[-1].grad = gradient
    return made


def test_the_norm_of_many_elements_is_that_in_float64() -> None:
    """An fp32 sum of 24.6 million squares is 0.1 % too small."""
    gradient = torch.randn(24_600_000, generator=torch.Generator().manual_seed(0)) * 1e-3
    exact = float(np.linalg.norm(gradient.numpy().astype(np.float64)))
    parameters = parameters_with(gradient.clone(), None)
    assert clip_gradients(parameters, exact / 2) == pytest.approx(exact, rel=1e-12)
    assert clip_gradients(parameters, 0.0) == pytest.approx(exact / 2, rel=1e-5)


@pytest.mark.parametrize(("limit", "factor"), [(0.0, 1.0), (13.0, 1.0), (14.0, 1.0), (6.5, 0.5)])
def test_gradients_are_scaled_together_and_only_above_the_limit(limit: float, factor: float) -> None:
    parameters = parameters_with(torch.tensor([3.0, 4.0]), torch.tensor([[12.0]]))
    assert clip_gradients(parameters, limit) == 13.0
    torch.testing.assert_close(parameters[0].grad, torch.tensor([3.0, 4.0]) * factor)
    torch.testing.assert_close(parameters[1].grad, torch.tensor([[12.0]]) * factor)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_returned(bad: float) -> None:
    assert not math.isfinite(clip_gradients(parameters_with(torch.tensor([1.0, bad])), 1.0))
