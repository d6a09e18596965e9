from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from pretrain.config.schema import BatchConfig, Config, DataConfig, EngineConfig, LossConfig, ModelConfig
from pretrain.model.decoder import Decoder
from pretrain.plan.counts import count_parameters
from pretrain.plan.memory import (
    activation_bytes,
    block_bytes_per_token,
    head_bytes,
    offload_devices,
    plan_memory,
    with_stage,
)

SHAPE = {"vocab_size": 96, "d_model": 64, "n_heads": 8, "n_kv_heads": 8, "d_ff": 160, "max_seq_len": 256}


def kept_for_backward(config: Config) -> int:
    """Bytes that autograd holds after one forward, without the parameters themselves."""
    model = Decoder(config.model, activation_checkpoint_every=config.engine.activation_checkpoint_every)
    model = model.to(torch.bfloat16 if config.engine.precision == "bf16" else torch.float32).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(config.batch.micro_batch_size, config.data.seq_len, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens, tokens, 0.0, config.loss.chunk_tokens)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


def make(precision: str = "bf16", n_layers: int = 2, every: int = 0, seq_len: int = 64, **model: Any) -> Config:
    return Config(
        model=ModelConfig(**{**SHAPE, "n_layers": n_layers, **model}),
        batch=BatchConfig(global_batch_size=64, micro_batch_size=2),
        data=DataConfig(seq_len=seq_len),
        engine=EngineConfig(precision=precision, zero_stage=2, activation_checkpoint_every=every),
        loss=LossConfig(chunk_tokens=32),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"d_model": 128, "d_ff": 96},
        {"n_kv_heads": 2},
        {"ffn": "gelu"},
        {"ffn": "relu"},
        {"ffn": "gelu_tanh", "ffn_bias": True, "attention_bias": "all"},
        {"norm": "layernorm"},
        {"norm": "layernorm", "norm_bias": True, "qk_norm": "head"},
        {"norm_position": "post", "qk_norm": "full", "n_kv_heads": 4},
        {"norm_position": "post", "norm": "layernorm"},
        {"head_dim": 16, "qk_norm": "head", "n_kv_heads": 2},
        {"rope_fraction": 0.5, "rope_scaling": "linear", "rope_factor": 2.0},
        {"positions": "learned"},
        {"seq_len": 128},
        {"tie_embeddings": True},
    ],
    ids=str,
)
def test_a_block_keeps_what_the_formula_says_to_the_byte(precision: str, model: dict[str, Any]) -> None:
    two, four = (make(precision, n_layers, **model) for n_layers in (2, 4))
    tokens = two.batch.micro_batch_size * two.data.seq_len
    measured = (kept_for_backward(four) - kept_for_backward(two)) / 2 / tokens
    assert measured == block_bytes_per_token(two.model, two.data.seq_len, 4 if precision == "fp32" else 2)


def test_attention_weights_of_the_formula_are_counted_nearly() -> None:
    """Without fused attention there are masks besides, of one byte a pair of positions and row."""
    two, four = (make("bf16", n_layers, attention="reference") for n_layers in (2, 4))
    tokens = two.batch.micro_batch_size * two.data.seq_len
    measured = (kept_for_backward(four) - kept_for_backward(two)) / 2 / tokens
    assert measured == pytest.approx(block_bytes_per_token(two.model, two.data.seq_len, 2), rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_whole_forward_keeps_what_the_plan_says(precision: str) -> None:
    config = make(precision, n_layers=4)
    chunk = config.loss.chunk_tokens * config.model.vocab_size * 8  # gone when forward ends
    planned = activation_bytes(config) + head_bytes(config) - chunk
    # Rotary angles, token ids and one more norm's output, none of which grows with the depth.
    assert kept_for_backward(config) == pytest.approx(planned, rel=0.05)


def test_recomputed_blocks_keep_their_input_and_one_is_at_work() -> None:
    plain, some, all_ = (activation_bytes(make(n_layers=6, every=every)) for every in (0, 2, 1))
    tokens, d_model = 2 * 64, SHAPE["d_model"]
    block = tokens * block_bytes_per_token(make().model, 64, 2)
    assert plain - some == 2 * block - 3 * 2 * tokens * d_model
    assert plain - all_ == 5 * block - 6 * 2 * tokens * d_model


def test_a_document_mask_is_one_matrix_a_row() -> None:
    config = make()
    masked = replace(config, data=replace(config.data, document_mask=True))
    assert activation_bytes(masked) - activation_bytes(config) == 2 * 64 * 64 * 2


@pytest.mark.parametrize(
    ("stage", "precision", "sizes"),
    [
        (0, "fp32", (4, 4, 8)),
        (1, "fp32", (4, 4, 12 / 8)),
        (1, "bf16", (2, 2, 12 / 8)),
        (2, "bf16", (2, 4 / 8, 12 / 8)),
        (2, "fp16", (2, 2 / 8, 12 / 8)),
        (3, "bf16", (2 / 8, 4 / 8, 12 / 8)),
        (3, "fp32", (4 / 8, 4 / 8, 12 / 8)),
    ],
)
def test_model_states_by_stage(stage: int, precision: str, sizes: tuple[float, float, float]) -> None:
    config = make(precision)
    config = replace(config, engine=replace(config.engine, zero_stage=stage))
    count = count_parameters(config.model)
    plan = plan_memory(config, 8)
    assert (plan.parameters, plan.gradients, plan.optimizer) == tuple(int(size * count) for size in sizes)


def test_the_paper_s_example_of_7_5_billion_parameters_on_64_devices() -> None:
    """ZeRO, figure 1: 31.4 GB, 16.6 GB and 1.9 GB, with gradients in 16 bit and without buffers and activations."""
    wide = ModelConfig(
        vocab_size=2, n_layers=36, d_model=4096, n_heads=32, n_kv_heads=32, d_ff=11624, tie_embeddings=True
    )
    assert count_parameters(wide) == pytest.approx(7.5e9, rel=0.01)
    for stage, expected in ((1, 31.4), (2, 16.6), (3, 1.9)):
        engine = EngineConfig(precision="fp16", zero_stage=stage)
        plan = plan_memory(Config(model=wide, engine=engine), 64)
        assert (plan.parameters + plan.gradients + plan.optimizer) / 1e9 == pytest.approx(expected, rel=0.02)


def test_offloading_moves_states_to_the_host_and_loses_none() -> None:
    config = replace(make(), engine=replace(make().engine, zero_stage=3))
    plain = plan_memory(config, 8)
    optimizer = plan_memory(with_stage(config, 3, optimizer=True), 8)
    everything = plan_memory(with_stage(config, 3, optimizer=True, parameters=True), 8)
    assert optimizer.host == plain.optimizer + plain.gradients
    assert everything.host == optimizer.host + plain.parameters
    for plan in (optimizer, everything):
        assert plan.total + plan.host == plain.total
    assert offload_devices(with_stage(config, 3, optimizer=True)) == ("cpu", "none")


def test_parameters_are_offloaded_at_stage_3_only() -> None:
    assert plan_memory(with_stage(make(), 2, parameters=True), 8).parameters == plan_memory(make(), 8).parameters


def test_states_on_a_disk_are_not_in_the_memory_of_the_host() -> None:
    options = {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}
    config = replace(make(), engine=replace(make().engine, deepspeed=options))
    plan = plan_memory(config, 8)
    assert (plan.optimizer, plan.gradients, plan.host) == (0, 0, 0)


def test_options_of_deepspeed_count() -> None:
    options = {"zero_optimization": {"reduce_bucket_size": 1000, "stage3_max_live_parameters": 0}}
    config = replace(make(), engine=replace(make().engine, zero_stage=3, deepspeed=options))
    plan = plan_memory(config, 8)
    assert plan.buckets == 2000
    assert plan.gathered == 2 * SHAPE["d_model"] * SHAPE["d_ff"]  # one matrix at least


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_more_processes_never_need_more_each(stage: int) -> None:
    config = replace(make(), engine=replace(make().engine, zero_stage=stage))
    totals = [plan_memory(config, world).total for world in (1, 2, 8, 64, 1024)]
    assert all(after < before for before, after in pairwise(totals))
