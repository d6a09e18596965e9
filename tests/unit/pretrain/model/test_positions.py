import math

import pytest
import torch

from pretrain.model.positions import frequencies, positions_in_documents, rotate, rotation, sinusoidal

CPU = torch.device("cpu")


def turned(x: torch.Tensor, positions: list[int], theta: float = 1e4) -> torch.Tensor:
    return rotate(x, rotation(torch.tensor(positions), frequencies(x.shape[-1], theta, CPU), x.dtype))


def test_rotate_half_is_multiplication_by_a_complex_number() -> None:
    C, theta = 8, 5e5
    x = torch.randn(2, 3, 6, C, dtype=torch.float64)
    positions = torch.tensor([0, 1, 2, 7, 100, 1_000])
    pairs = torch.complex(x[..., : C // 2], x[..., C // 2 :])
    angles = positions.double()[:, None] * theta ** (-torch.arange(0, C, 2).double() / C)
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    found = rotate(x, rotation(positions, frequencies(C, theta, CPU), torch.float64))
    torch.testing.assert_close(found, torch.cat([expected.real, expected.imag], dim=-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shift", [1, 10, 500])
def test_dot_products_depend_on_distances_only(shift: int) -> None:
    q, k = torch.randn(1, 1, 16, 32), torch.randn(1, 1, 16, 32)
    positions = list(range(16))
    here = turned(q, positions) @ turned(k, positions).mT
    there = turned(q, [p + shift for p in positions]) @ turned(k, [p + shift for p in positions]).mT
    torch.testing.assert_close(here, there, atol=2e-3, rtol=1e-3)
    apart = turned(q, positions) @ turned(k, [p + 3 for p in positions]).mT
    assert (here - apart).abs().max() > 0.5


def test_position_zero_is_left_as_it_is_and_lengths_are_kept() -> None:
    x = torch.randn(1, 2, 5, 16)
    out = turned(x, [0, 1, 2, 3, 4])
    assert torch.equal(out[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))


def test_the_first_pair_turns_by_one_radian_a_position_and_the_last_slowest() -> None:
    found = frequencies(8, 1e4, CPU)
    torch.testing.assert_close(found, torch.tensor([1.0, 1e-1, 1e-2, 1e-3]))


def test_angles_are_fp32_even_for_bf16_activations() -> None:
    """bf16 holds integers to 256 only: neighbours at 4,096 would get the same angle."""
    positions = torch.arange(4_090, 4_096)
    low = rotation(positions, frequencies(64, 1e4, CPU), torch.bfloat16)
    assert low.cos_TC.dtype == low.sin_TC.dtype == torch.bfloat16
    angles = positions.double()[:, None] * (1e4 ** (-torch.arange(0, 64, 2).double() / 64))
    exact = torch.cat([angles, angles], dim=-1)
    assert (low.cos_TC.double() - exact.cos()).abs().max() < 5e-3  # the rounding of the result, not of the angle
    assert (low.sin_TC.double() - exact.sin()).abs().max() < 5e-3
    assert len({tuple(row) for row in low.cos_TC.tolist()}) == 6


def test_sinusoids_follow_the_formula() -> None:
    T, D = 7, 10
    found = sinusoidal(torch.arange(T), D)
    assert found.shape == (T, D)
    assert found.dtype == torch.float32
    for t in range(T):
        for i in range(D // 2):
            angle = t / 10_000 ** (2 * i / D)
            assert found[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert found[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_rows_with_positions_of_their_own_are_turned_each_by_its_own() -> None:
    positions = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 9]])
    x = torch.randn(2, 3, 4, 8)
    turned_together = rotate(x, rotation(positions, frequencies(8, 1e4, CPU), torch.float32))
    for row in range(2):
        assert torch.equal(turned_together[row : row + 1], turned(x[row : row + 1], positions[row].tolist()))
        assert torch.equal(sinusoidal(positions, 8)[row], sinusoidal(positions[row], 8))


def test_positions_begin_at_zero_in_each_document() -> None:
    documents = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 2, 2], [4, 5, 5, 5, 6]], dtype=torch.int32)
    found = positions_in_documents(documents)
    assert found.dtype == torch.int64
    assert found.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 0, 1], [0, 0, 1, 2, 0]]
