"""With the cache, logits are those of a forward without one, however the tokens are split."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.model.decoder import Decoder
from pretrain.model.kv_cache import KVCache
from tests.support.shapes import SHAPES, small_decoder

TOKENS = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(1))
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@torch.no_grad()
def whole(model: Decoder, tokens_BT: Tensor) -> Tensor:
    """Logits (B, T, V) of a forward as in training."""
    return model(tokens_BT)


@torch.no_grad()
def in_pieces(model: Decoder, tokens_BT: Tensor, sizes: list[int], cache: KVCache) -> Tensor:
    """Logits (B, P, V) at the end of each of P pieces."""
    parts = [model(piece, cache=cache) for piece in tokens_BT.split(sizes, dim=1)]
    return torch.cat(parts, dim=1)


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def model(request: pytest.FixtureRequest) -> Decoder:
    return small_decoder(**request.param)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_tokens_may_come_in_pieces_of_any_size(model: Decoder, sizes: list[int]) -> None:
    total = min(sum(sizes), 20)
    ends = sorted({min(end, total) for end in torch.tensor(sizes).cumsum(0).tolist()})
    sizes = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    found = in_pieces(model, TOKENS[:, :total], sizes, KVCache(model.config, 3, 20))
    torch.testing.assert_close(found, whole(model, TOKENS[:, :total])[:, [end - 1 for end in ends]], **CLOSE)


def left_padded(tokens: list[Tensor], filler: int = 0) -> tuple[Tensor, Tensor]:
    longest = max(map(len, tokens))
    padding_B = torch.tensor([longest - len(row) for row in tokens])
    rows = [torch.cat([torch.full((longest - len(row),), filler), row]) for row in tokens]
    return torch.stack(rows), padding_B


def test_rows_of_different_lengths_are_as_each_alone(model: Decoder) -> None:
    lengths = (4, 13, 20)
    prompts = [TOKENS[row, : length - 3] for row, length in enumerate(lengths)]
    tokens_BT, padding_B = left_padded(prompts)
    cache = KVCache(model.config, 3, 20, padding_B=padding_B)
    with torch.no_grad():
        found = [model(tokens_BT, cache=cache)[:, 0]]
        for later in range(3):
            new_B = torch.stack([TOKENS[row, length - 3 + later] for row, length in enumerate(lengths)])
            found.append(model(new_B[:, None], cache=cache)[:, 0])
    for row, length in enumerate(lengths):
        alone = whole(model, TOKENS[row : row + 1, :length])[0, -4:]
        torch.testing.assert_close(torch.stack([logits_BV[row] for logits_BV in found]), alone, **CLOSE)


def test_contents_of_the_padding_change_no_bit(model: Decoder) -> None:
    found = []
    for filler in (0, 49):
        tokens_BT, padding_B = left_padded([TOKENS[0, :5], TOKENS[1, :17]], filler)
        cache = KVCache(model.config, 2, 20, padding_B=padding_B)
        found.append(in_pieces(model, torch.cat([tokens_BT, TOKENS[:2, 17:]], dim=1), [17, 1, 2], cache))
    assert found[0].isfinite().all()
    assert torch.equal(found[0], found[1])


def test_a_piece_behind_filling_is_read_like_single_tokens(model: Decoder) -> None:
    tokens_BT, padding_B = left_padded([TOKENS[0, :5], TOKENS[1, :12]])
    tokens_BT = torch.cat([tokens_BT, TOKENS[:2, 12:17]], dim=1)
    at_once = in_pieces(model, tokens_BT, [12, 5], KVCache(model.config, 2, 17, padding_B=padding_B))
    singly = in_pieces(model, tokens_BT, [12, 1, 1, 1, 1, 1], KVCache(model.config, 2, 17, padding_B=padding_B))
    torch.testing.assert_close(at_once[:, -1], singly[:, -1], **CLOSE)


def test_rows_are_taken_in_another_order_twice_or_not_at_all() -> None:
    model = small_decoder()
    tokens_BT, padding_B = left_padded([TOKENS[0, :3], TOKENS[1, :10], TOKENS[2, :7]])
    cache = KVCache(model.config, 3, 12, padding_B=padding_B)
    in_pieces(model, tokens_BT, [10], cache)
    rows = torch.tensor([2, 0, 2, 2])
    cache.select(rows)
    news_BT = torch.tensor([[5, 6], [7, 8], [9, 10], [5, 6]])
    found = in_pieces(model, news_BT, [1, 1], cache)
    for place, row in enumerate(rows.tolist()):
        alone = torch.cat([tokens_BT[row, padding_B[row] :], news_BT[place]])[None]
        torch.testing.assert_close(found[place], whole(model, alone)[0, -2:], **CLOSE)


def test_a_row_that_goes_on_does_not_write_into_its_copy() -> None:
    model = small_decoder()
    cache = KVCache(model.config, 1, 8)
    in_pieces(model, TOKENS[:1, :4], [4], cache)
    keys = cache.keys[0].clone()
    cache.select(torch.tensor([0, 0]))
    in_pieces(model, torch.tensor([[1], [2]]), [1], cache)
    assert torch.equal(cache.keys[0][:, :, :4], keys[:, :, :4].expand(2, -1, -1, -1))
    assert not torch.equal(cache.keys[0][0, :, 4], cache.keys[0][1, :, 4])


@pytest.mark.parametrize("sizes", [[9], [8, 1], [5, 4]])
def test_a_full_cache_says_so(sizes: list[int]) -> None:
    """A token beyond the capacity would be dropped silently: assigning to an empty slice broadcasts."""
    with pytest.raises(ValueError, match="8 positions"):
        in_pieces(small_decoder(), TOKENS[:1, :9], sizes, KVCache(small_decoder().config, 1, 8))


def test_in_bf16_it_holds_bf16_and_stays_near() -> None:
    model = small_decoder().to(torch.bfloat16)
    tokens_BT, padding_B = left_padded([TOKENS[0, :6], TOKENS[1, :12]])
    cache = KVCache(model.config, 2, 14, dtype=torch.bfloat16, padding_B=padding_B)
    found = in_pieces(model, torch.cat([tokens_BT, TOKENS[:2, 12:14]], dim=1), [12, 1, 1], cache)
    assert {tensor.dtype for tensor in (*cache.keys, *cache.values)} == {torch.bfloat16}
    alone = whole(model, torch.cat([TOKENS[0, :6], TOKENS[0, 12:14]])[None])[0, -3:]
    torch.testing.assert_close(found[0], alone, rtol=0.05, atol=0.15)
