import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config.schema import BatchConfig, Config, DataConfig, ModelConfig
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights
from pretrain.plan.counts import BatchPlan, count_parameters, flops_per_token, plan_batch


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 4))
    heads = kv_heads * group
    return ModelConfig(
        vocab_size=draw(st.integers(2, 50)),
        n_layers=draw(st.integers(1, 4)),
        d_model=heads * head_dim,
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_ff=draw(st.integers(1, 40)),
        max_seq_len=draw(st.integers(1, 30)),
        positions=draw(st.sampled_from(["rope", "learned", "sinusoidal"])),
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        ffn=draw(st.sampled_from(["swiglu", "gelu", "gelu_tanh", "relu"])),
        head_dim=draw(st.sampled_from([0, 2, 6])),
        norm_bias=draw(st.booleans()),
        norm_position=draw(st.sampled_from(["pre", "post"])),
        qk_norm=draw(st.sampled_from(["none", "head", "full"])),
        attention_bias=draw(st.sampled_from(["none", "qkv", "all"])),
        ffn_bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
    )


@settings(deadline=None, max_examples=80)
@given(models())
def test_parameters_are_counted_as_the_model_has_them(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Decoder(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


def measured_flops(config: ModelConfig, batch: int, seq_len: int) -> int:
    """Matrix multiplications of one real forward and backward, each multiply-add as two."""
    model = Decoder(dataclasses.replace(config, attention="reference"))
    init_weights(model, config, seed=0)
    tokens = torch.randint(config.vocab_size, (batch, seq_len))
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).total.backward()
    return counter.get_total_flops()


SHAPE: dict[str, Any] = {"vocab_size": 96, "n_layers": 3, "d_model": 32, "n_heads": 4, "d_ff": 80, "max_seq_len": 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"n_kv_heads": 4},
        {"n_kv_heads": 2, "tie_embeddings": True},
        {"n_kv_heads": 1, "ffn": "gelu", "positions": "learned"},
        {"n_kv_heads": 4, "positions": "learned", "tie_embeddings": True, "norm": "layernorm"},
    ],
)
def test_flops_are_those_of_a_real_step_within_the_stated_convention(changes: dict[str, Any]) -> None:
    config, batch, seq_len = ModelConfig(**SHAPE, **changes), 2, 48
    # torch counts the whole square of attention, we the half below the diagonal; norms' weights multiply in no matrix.
    upper_half = 6.0 * config.n_layers * config.d_model * seq_len
    norms = 6.0 * (2 * config.n_layers + 1) * config.d_model
    expected = flops_per_token(config, seq_len) + upper_half - norms
    assert measured_flops(config, batch, seq_len) == expected * batch * seq_len


def test_a_batch_is_cut_among_the_processes() -> None:
    config = Config(batch=BatchConfig(global_batch_size=48, micro_batch_size=4), data=DataConfig(seq_len=128))
    assert plan_batch(config, 1) == BatchPlan(48, 12, 48 * 128)
    assert plan_batch(config, 4) == BatchPlan(12, 3, 48 * 128)
    assert plan_batch(config, 12) == BatchPlan(4, 1, 48 * 128)
