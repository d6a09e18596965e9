import math

import pytest
import torch
from torch import Tensor

from pretrain.config.schema import ModelConfig
from pretrain.model.attention import (
    MultiHeadAttention,
    attention_weights,
    document_mask,
    fast_attention,
    reference_attention,
)
from pretrain.model.positions import frequencies, rotation

CPU = torch.device("cpu")
SHAPES = [(1, 1, 1, 4), (2, 4, 4, 8), (2, 4, 2, 16), (1, 6, 3, 8), (3, 8, 1, 32), (1, 2, 1, 2)]  # B, H, K, C
LENGTHS = [1, 2, 17, 64]
# Lengths of the documents in each row. The fused kernel works on blocks of 512 keys: there a whole block may be hidden.
ROWS = [[[1]], [[2, 1, 4], [7]], [[1] * 12, [11, 1]], [[600, 90, 10], [3, 687, 10]]]


def qkv(shape: tuple[int, int, int, int], length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    B, H, K, C = shape
    generator = torch.Generator().manual_seed(hash((shape, length)) % 2**31)
    return tuple(
        torch.randn(B, heads, length, C, generator=generator, dtype=torch.float32).to(dtype).requires_grad_()
        for heads in (H, K, K)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_the_fast_path_is_the_formula_with_its_gradients(shape: tuple[int, int, int, int], length: int) -> None:
    fast_inputs, reference_inputs = qkv(shape, length), qkv(shape, length)
    fast, reference = fast_attention(*fast_inputs), reference_attention(*reference_inputs)
    torch.testing.assert_close(fast, reference, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(fast.shape, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(
        torch.autograd.grad(fast, fast_inputs, upstream),
        torch.autograd.grad(reference, reference_inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fast_path_in_bf16_is_close_to_the_formula_in_fp32(shape: tuple[int, int, int, int]) -> None:
    fast = fast_attention(*qkv(shape, 64, torch.bfloat16))
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast.float(), reference_attention(*qkv(shape, 64)), atol=3e-2, rtol=3e-2)


def test_the_formula_is_a_loop_over_heads_and_positions() -> None:
    B, H, K, C, T = 2, 6, 3, 4, 5
    q, k, v = (tensor.detach() for tensor in qkv((B, H, K, C), T))
    found = reference_attention(q, k, v)
    for b in range(B):
        for h in range(H):
            key_head = h // (H // K)
            for t in range(T):
                scores = [
                    sum(q[b, h, t, c].item() * k[b, key_head, s, c].item() for c in range(C)) for s in range(t + 1)
                ]
                weights = [math.exp(score / math.sqrt(C)) for score in scores]
                for c in range(C):
                    mixed = sum(w * v[b, key_head, s, c].item() for s, w in enumerate(weights)) / sum(weights)
                    assert found[b, h, t, c].item() == pytest.approx(mixed, abs=1e-5)


@pytest.mark.parametrize("attend", [fast_attention, reference_attention])
def test_one_query_for_many_keys_is_that_of_the_last_position(attend) -> None:
    q, k, v = qkv((2, 4, 2, 8), 9)
    torch.testing.assert_close(attend(q[:, :, -1:], k, v), attend(q, k, v)[:, :, -1:], atol=1e-6, rtol=1e-6)


def test_weights_sum_to_one_and_see_no_future() -> None:
    q, k, _ = qkv((2, 3, 3, 8), 16)
    weights = attention_weights(q, k)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 16))
    assert (weights.triu(diagonal=1) == 0).all()
    assert (weights.tril() > 0).sum() == 2 * 3 * 16 * 17 // 2


@pytest.mark.parametrize("attend", [fast_attention, reference_attention])
def test_a_later_token_cannot_influence_an_earlier_output(attend) -> None:
    q, k, v = qkv((1, 4, 2, 8), 12)
    out = attend(q, k, v)
    for t in (0, 5, 11):
        gradients = torch.autograd.grad(out[:, :, t].sum(), (q, k, v), retain_graph=True)
        for name, gradient in zip("qkv", gradients, strict=True):
            assert (gradient[:, :, t + 1 :] == 0).all(), name
    assert (gradients[2] != 0).all()  # the last position sees all values


@pytest.mark.parametrize("attend", [fast_attention, reference_attention])
@pytest.mark.parametrize(("H", "K"), [(4, 2), (4, 1), (6, 3)])
def test_grouped_queries_are_repeated_key_heads(attend, H: int, K: int) -> None:
    q, k, v = qkv((2, H, K, 8), 10)
    repeated = attend(q, k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1))
    torch.testing.assert_close(attend(q, k, v), repeated, atol=1e-6, rtol=1e-6)


# --- documents --------------------------------------------------------------------------------------------------------


def documents(rows: list[list[int]]) -> Tensor:
    """The number of each position's document, (B, T)."""
    return torch.tensor([[number for number, n in enumerate(lengths) for _ in range(n)] for lengths in rows])


def row_shape(rows: list[list[int]]) -> tuple[tuple[int, int, int, int], int]:
    return (len(rows), 4, 2, 8), sum(rows[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_shows_the_same_document_and_not_the_future(dtype: torch.dtype) -> None:
    of = documents([[3, 1, 4], [8], [1, 5, 2]])
    mask = document_mask(of, dtype)
    assert mask.shape == (3, 1, 8, 8)
    assert mask.dtype == dtype
    for row in range(3):
        for query in range(8):
            for key in range(8):
                visible = of[row, query] == of[row, key] and key <= query
                assert mask[row, 0, query, key] == (0.0 if visible else -math.inf)


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_the_fast_path_stays_within_documents_as_the_formula_does(rows: list[list[int]]) -> None:
    fast_inputs, reference_inputs = qkv(*row_shape(rows)), qkv(*row_shape(rows))
    mask = document_mask(documents(rows), torch.float32)
    fast, reference = fast_attention(*fast_inputs, mask), reference_attention(*reference_inputs, mask)
    torch.testing.assert_close(fast, reference, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(fast.shape, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(
        torch.autograd.grad(fast, fast_inputs, upstream),
        torch.autograd.grad(reference, reference_inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_the_fast_path_within_documents_in_bf16_is_close_to_the_formula_in_fp32(rows: list[list[int]]) -> None:
    mask = document_mask(documents(rows), torch.bfloat16)
    fast = fast_attention(*qkv(*row_shape(rows), torch.bfloat16), mask)
    assert fast.dtype == torch.bfloat16
    expected = reference_attention(*qkv(*row_shape(rows)), mask.float())
    torch.testing.assert_close(fast.float(), expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("attend", [fast_attention, reference_attention])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_a_document_in_a_row_is_a_document_alone(attend, rows: list[list[int]]) -> None:
    q, k, v = qkv(*row_shape(rows))
    together = attend(q, k, v, document_mask(documents(rows), torch.float32))
    for row, lengths in enumerate(rows):
        start = 0
        for length in lengths:
            place = (slice(row, row + 1), slice(None), slice(start, start + length))
            torch.testing.assert_close(together[place], attend(q[place], k[place], v[place]), atol=1e-5, rtol=1e-5)
            start += length


@pytest.mark.parametrize("attend", [fast_attention, reference_attention])
def test_no_gradient_crosses_from_a_document_to_another(attend) -> None:
    q, k, v = qkv((1, 4, 2, 8), 12)
    out = attend(q, k, v, document_mask(documents([[5, 3, 4]]), torch.float32))
    gradients = torch.autograd.grad(out[:, :, 5:8].sum(), (q, k, v))
    for name, gradient in zip("qkv", gradients, strict=True):
        assert (gradient[:, :, :5] == 0).all(), name
        assert (gradient[:, :, 8:] == 0).all(), name
    assert (gradients[2][:, :, 5:8] != 0).all()


# --- the module -------------------------------------------------------------------------------------------------------


def config(**changes: object) -> ModelConfig:
    return ModelConfig(**({"d_model": 32, "n_heads": 4, "n_kv_heads": 2} | changes))


@pytest.mark.parametrize("rotary", [False, True])
def test_both_paths_of_the_module_agree(rotary: bool) -> None:
    torch.manual_seed(0)
    fast, reference = MultiHeadAttention(config()), MultiHeadAttention(config(attention="reference"))
    assert fast.attend is fast_attention
    assert reference.attend is reference_attention
    reference.load_state_dict(fast.state_dict())
    x, turn = (
        torch.randn(2, 9, 32),
        rotation(torch.arange(9), frequencies(8, 1e4, CPU), torch.float32) if rotary else None,
    )
    torch.testing.assert_close(fast(x, turn), reference(x, turn), atol=1e-6, rtol=1e-5)
    mask = document_mask(documents([[4, 5], [8, 1]]), torch.float32)
    torch.testing.assert_close(fast(x, turn, mask), reference(x, turn, mask), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(fast(x, turn, mask), fast(x, turn))


def test_the_module_splits_and_joins_heads_in_the_same_order() -> None:
    """With one position each query head returns its group's value head."""
    module = MultiHeadAttention(config())
    with torch.no_grad():
        module.output.weight.copy_(torch.eye(32))
    x = torch.randn(1, 1, 32)
    values = module.value(x).view(2, 8)
    torch.testing.assert_close(module(x, None).view(4, 8), values.repeat_interleave(2, dim=0))
