import pytest
import torch
from torch import nn

from pretrain.optim.clipping import ROW, clip_gradients, global_norm


def with_gradients(*gradients: torch.Tensor) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.empty_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def test_the_norm_of_25_million_elements_is_that_of_fp64() -> None:
    gradients = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in (24_600_000, ROW + 1, 7)]
    exact = float(torch.cat(gradients).double().norm())
    assert global_norm(gradients) == pytest.approx(exact, rel=1e-6)


def test_clipping_scales_by_the_true_norm() -> None:
    parameters = with_gradients(torch.full((25_000_000,), 0.01), torch.full((100, 100), 0.01))
    assert clip_gradients(parameters, 1.0) == pytest.approx(0.01 * 25_010_000**0.5, rel=1e-6)
    squares = sum(
        float(parameter.grad.double().square().sum()) for parameter in parameters if parameter.grad is not None
    )
    assert squares == pytest.approx(1.0, rel=2e-6)


@pytest.mark.parametrize("max_norm", [0.0, 5.0, 100.0])
def test_gradients_within_the_limit_keep_their_bits(max_norm: float) -> None:
    parameters = with_gradients(torch.tensor([3.0, 4.0]))
    assert clip_gradients(parameters, max_norm) == pytest.approx(5.0, rel=1e-7)
    assert parameters[0].grad is not None and parameters[0].grad.tolist() == [3.0, 4.0]


def test_gradients_that_are_not_numbers_stay_visible() -> None:
    parameters = with_gradients(torch.tensor([3.0, torch.nan]))
    assert clip_gradients(parameters, 1.0) != clip_gradients(parameters, 1.0)
