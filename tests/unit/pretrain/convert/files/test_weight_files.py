from dataclasses import replace

import pytest
import torch

from pretrain.convert.files.weight_files import expected_shapes, plan_shards, refuse_unless_complete, rounded_parameter
from pretrain.errors import ExportError
from tests.support.weight_source import memory_source, small_model


def test_shards_keep_the_order_and_stay_below_the_limit() -> None:
    sizes = {"a": 4, "b": 4, "c": 3, "d": 20, "e": 1, "f": 9}
    assert plan_shards(sizes, 10) == [["a", "b"], ["c"], ["d"], ["e", "f"]]


def test_everything_fits_in_one_shard() -> None:
    assert plan_shards({"a": 4, "b": 6}, 10) == [["a", "b"]]


def test_a_tied_head_is_not_expected() -> None:
    assert "head.weight" in expected_shapes(small_model())
    assert "head.weight" not in expected_shapes(small_model(tie_embeddings=True))


def test_missing_surplus_and_misshapen_parameters_come_in_one_error() -> None:
    source = memory_source(None)
    del source.tensors["final_norm.weight"]
    source.tensors["blocks.2.attention.query.weight"] = torch.zeros(64, 64)
    source.tensors["head.weight"] = torch.zeros(7, 64)
    with pytest.raises(ExportError) as caught:
        refuse_unless_complete(source)
    assert "missing: final_norm.weight (64,)" in str(caught.value)
    assert "not in the model: blocks.2.attention.query.weight" in str(caught.value)
    assert "head.weight is (7, 64), the configuration says (1009, 64)" in str(caught.value)


def test_a_head_beside_tied_embeddings_is_surplus() -> None:
    source = memory_source(None)
    source.config = replace(source.config, model=small_model(tie_embeddings=True))
    with pytest.raises(ExportError, match=r"not in the model: head\.weight"):
        refuse_unless_complete(source)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    source = memory_source(None)
    source.tensors["blocks.1.feed_forward.up.weight"][3, 5] = value
    with pytest.raises(ExportError, match=r"blocks\.1\.feed_forward\.up\.weight: 1 of 10240"):
        rounded_parameter(source, "blocks.1.feed_forward.up.weight", torch.float32)


def test_a_weight_that_overflows_when_rounded_is_refused() -> None:
    source = memory_source(None)
    source.tensors["final_norm.weight"][0] = torch.finfo(torch.float32).max
    rounded_parameter(source, "final_norm.weight", torch.float32)
    with pytest.raises(ExportError, match="bfloat16"):
        rounded_parameter(source, "final_norm.weight", torch.bfloat16)
