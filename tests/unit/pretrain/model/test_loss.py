import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.model import loss as loss_module
from pretrain.model.loss import IGNORE, LossSums, chunked_cross_entropy, plain_cross_entropy

N_DEFAULT, D, V = 14, 8, 37


def inputs(
    n: int = N_DEFAULT, ignored: float = 0.3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(2, n // 2, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(V, (2, n // 2), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = IGNORE
    return x, weight, targets


def plain_total(x: Tensor, weight: Tensor, targets: Tensor, z_weight: float) -> LossSums:
    """By torch's own functions, in the dtype of the inputs."""
    logits = x @ weight.T
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    z_squared = (logits.logsumexp(-1).square() * (targets != IGNORE)).sum()
    correct = (logits.argmax(-1) == targets).sum()
    return LossSums(cross_entropy + z_weight * z_squared, cross_entropy, z_squared, correct)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 13, 14, 15, 1_000])
@pytest.mark.parametrize("z_weight", [0.0, 0.1])
def test_value_and_gradients_are_those_of_the_plain_way(chunk: int, z_weight: float) -> None:
    x, weight, targets = inputs()
    found = chunked_cross_entropy(x, weight, targets, z_weight, chunk)
    expected = plain_total(x.double(), weight.double(), targets, z_weight)
    for name in ("total", "cross_entropy", "z_squared"):
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(expected, name), msg=name, atol=1e-4, rtol=1e-5
        )
    for a, b in zip(
        torch.autograd.grad(3 * found.total, (x, weight)),
        torch.autograd.grad(3 * expected.total, (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 20).map(lambda half: 2 * half), chunk=st.integers(1, 50), ignored=st.floats(0, 1))
def test_the_size_of_a_chunk_changes_rounding_only(n: int, chunk: int, ignored: float) -> None:
    x, weight, targets = inputs(n, ignored)
    one, many = (chunked_cross_entropy(x, weight, targets, 0.01, size) for size in (n, chunk))
    torch.testing.assert_close(one.total, many.total, atol=1e-4, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(one.total, (x, weight)), torch.autograd.grad(many.total, (x, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_gradient_is_the_slope() -> None:
    """Finite differences of the plain loss in float64: gradcheck itself cannot run, the chunked one is fp32 inside."""
    x, weight, targets = inputs(4)
    gradient = torch.autograd.grad(chunked_cross_entropy(x, weight, targets, 0.05, 3).total, (x, weight))
    for tensor, slope in zip((x, weight), gradient, strict=True):
        for place in range(0, tensor.numel(), 5):
            moved = []
            for step in (1e-5, -1e-5):
                copies = [part.detach().double().clone() for part in (x, weight)]
                copies[0 if tensor is x else 1].view(-1)[place] += step
                moved.append(plain_total(*copies, targets, 0.05).total)
            assert slope.view(-1)[place].item() == pytest.approx((moved[0] - moved[1]).item() / 2e-5, abs=1e-3)


def test_ignored_targets_add_nothing_and_get_no_gradient() -> None:
    x, weight, targets = inputs()
    assert 0 < (targets == IGNORE).sum() < targets.numel()
    chunked_cross_entropy(x, weight, targets, 0.1, 4).total.backward()
    assert (x.grad[targets == IGNORE] == 0).all()
    assert (x.grad[targets != IGNORE] != 0).any(-1).all()


def test_nothing_but_ignored_targets_is_a_loss_of_zero() -> None:
    x, weight, targets = inputs()
    sums = chunked_cross_entropy(x, weight, torch.full_like(targets, IGNORE), 0.1, 4)
    assert [value.item() for value in sums[:3]] == [0.0, 0.0, 0.0]
    sums.total.backward()
    assert (x.grad == 0).all()
    assert (weight.grad == 0).all()


def test_huge_logits_stay_finite() -> None:
    x, weight, targets = inputs()
    sums = chunked_cross_entropy(x * 1e4, weight, targets, 0.0, 4)
    sums.total.backward()
    assert all(value.isfinite() for value in sums[:3])
    assert x.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_bf16_is_as_close_as_its_rounding_allows() -> None:
    x, weight, targets = inputs(200, dtype=torch.bfloat16)
    found = chunked_cross_entropy(x, weight, targets, 0.0, 16)
    expected = plain_total(x.double(), weight.double(), targets, 0.0)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total.double(), expected.total, atol=0, rtol=5e-3)
    gradients = torch.autograd.grad(found.total, (x, weight))
    assert [g.dtype for g in gradients] == [torch.bfloat16] * 2
    for a, b in zip(gradients, torch.autograd.grad(expected.total, (x, weight)), strict=True):
        assert (a.double() - b.double()).norm() / b.double().norm() < 2e-2


def test_bf16_gradients_of_the_weight_are_summed_in_fp32() -> None:
    """600 chunks that add 0.5 each: a bf16 sum would stop growing at 128."""
    x = torch.ones(1, 600, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    chunked_cross_entropy(x, weight, torch.zeros(1, 600, dtype=torch.long), 0.0, 1).total.backward()
    assert weight.grad.flatten().tolist() == [-300.0, 300.0]


@pytest.mark.parametrize("wanted", ["x", "weight", "none"])
def test_only_inputs_that_require_a_gradient_get_one(wanted: str) -> None:
    x, weight, targets = inputs()
    reference = torch.autograd.grad(chunked_cross_entropy(x, weight, targets, 0.1, 4).total, (x, weight))
    x.requires_grad_(wanted == "x")
    weight.requires_grad_(wanted == "weight")
    total = chunked_cross_entropy(x, weight, targets, 0.1, 4).total
    assert total.requires_grad == (wanted != "none")
    if wanted != "none":
        total.backward()
    for name, tensor, expected in (("x", x, reference[0]), ("weight", weight, reference[1])):
        assert (tensor.grad is not None) == (name == wanted)
        if tensor.grad is not None:
            assert torch.equal(tensor.grad, expected)


def test_only_the_total_carries_a_gradient() -> None:
    sums = chunked_cross_entropy(*inputs(), 0.1, 4)
    assert [value.requires_grad for value in sums] == [True, False, False, False]


@pytest.mark.parametrize("chunk", [1, 3, 14, 1_000])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_right_tokens_are_those_that_are_the_likeliest(chunk: int, ignored: float) -> None:
    x, weight, targets = inputs(200, ignored=ignored)
    likeliest = (x @ weight.T).argmax(-1)
    targets[:, ::3] = torch.where(targets == IGNORE, targets, likeliest)[:, ::3]
    with torch.no_grad():
        found = chunked_cross_entropy(x, weight, targets, 0.0, chunk).correct
    assert found.item() == plain_total(x, weight, targets, 0.0).correct.item()
    assert (found.item() > 40) == (ignored < 1)


def test_of_equally_likely_tokens_the_first_is_the_prediction() -> None:
    x, weight = torch.ones(1, 4, 1), torch.ones(3, 1)
    with torch.no_grad():
        assert chunked_cross_entropy(x, weight, torch.tensor([[0, 1, 2, 0]]), 0.0, 2).correct.item() == 2


def test_training_does_not_pay_for_the_count_of_right_tokens() -> None:
    with LargestTensors(V) as seen:
        sums = chunked_cross_entropy(*inputs(), 0.1, 4)
    assert sums.correct.isnan()
    assert "aten.argmax.default" not in seen.operations
    with torch.no_grad(), LargestTensors(V) as seen:
        chunked_cross_entropy(*inputs(), 0.1, 4)
    assert "aten.argmax.default" in seen.operations


def test_no_gradient_is_computed_where_none_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation: needs_input_grad of a custom Function is True even under no_grad."""
    asked: list[bool] = []
    original = loss_module._loss_and_grad

    def note(logits: Tensor, targets: Tensor, z_weight: float, want_grad: bool) -> tuple[Tensor, Tensor]:
        asked.append(want_grad)
        return original(logits, targets, z_weight, want_grad)

    monkeypatch.setattr(loss_module, "_loss_and_grad", note)
    x, weight, targets = inputs()
    with torch.no_grad():
        quiet = chunked_cross_entropy(x.detach(), weight, targets, 0.1, 100)
    loud = chunked_cross_entropy(x, weight, targets, 0.1, 100)
    assert asked == [False, True]
    assert torch.equal(quiet.total, loud.total)


class LargestTensors(TorchDispatchMode):
    """Records operations, and the shape of every tensor with a side of `vocab` that one returns."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.rows = vocab, 0
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.add(str(func))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape[-1] == self.vocab:
                self.rows = max(self.rows, tensor.numel() // self.vocab)
        return result


@pytest.mark.parametrize("chunk", [16, 50])
def test_logits_never_exist_beyond_one_chunk(chunk: int) -> None:
    vocab, n, width = 307, 500, 5
    x = torch.randn(1, n, width, requires_grad=True)
    weight = torch.randn(vocab, width, requires_grad=True)
    targets = torch.randint(vocab, (1, n))
    with LargestTensors(vocab) as chunked:
        chunked_cross_entropy(x, weight, targets, 0.1, chunk).total.backward()
    with LargestTensors(vocab) as plain:
        plain_cross_entropy(x @ weight.T, targets).backward()
    assert plain.rows == n  # the recorder sees what it should
    assert chunked.rows == chunk


class LiveBytes(TorchDispatchMode):
    """Peak bytes of the storages that operations made; those of `given` tensors and their views are not counted."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.mark.parametrize(("dtype", "planned"), [(torch.float32, 4), (torch.bfloat16, 6)])
def test_one_chunk_of_logits_and_one_gradient_of_the_weight_are_held(dtype: torch.dtype, planned: int) -> None:
    vocab, n, width, chunk = 4_096, 256, 8, 64
    x = torch.randn(1, n, width).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width).to(dtype).requires_grad_()
    targets = torch.randint(vocab, (1, n))
    with LiveBytes(x, weight, targets) as forward:
        total = chunked_cross_entropy(x, weight, targets, 0.0, chunk).total
    gradient = 4 * vocab * width
    # Within a chunk: logits in fp32, and in bf16 beside them while they are converted. A product of the size of the weight.
    assert forward.peak <= 1.1 * (chunk * vocab * planned + 2 * gradient)
    with LiveBytes() as backward:
        total.backward()
    # The gradient in fp32, scaled in place, and that of the parameter where its type is another.
    assert backward.peak <= 1.1 * (gradient if dtype == torch.float32 else 1.5 * gradient)


def test_a_second_backward_is_refused_rather_than_scaled_twice() -> None:
    x, weight, targets = inputs()
    total = chunked_cross_entropy(x, weight, targets, 0.0, 5).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_the_reference_of_the_tests_is_torchs_own() -> None:
    x, weight, targets = inputs()
    torch.testing.assert_close(plain_cross_entropy(x @ weight.T, targets), plain_total(x, weight, targets, 0.0).total)
