"""transformers' Starcoder2ForCausalLM: LayerNorm, rotary positions, grouped queries, two matrices of feed-forward.

It has biases in all linear layers or in none, and always in its norms: those that our model has not are zeros.
"""

from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.activations import EXPORTED, read_activation
from pretrain.convert.families.config_file import ConfigFile
from pretrain.convert.families.family import (
    Family,
    HFTensor,
    bias,
    in_each_block,
    matrix,
    mismatches,
    whole_rotation,
)
from pretrain.convert.families.llama import common_json, read_common
from pretrain.convert.families.rope import read_rope

NAME = "StarCoder2"


def reasons(model: ModelConfig) -> list[str]:
    """Why stock StarCoder2 code cannot hold the model."""
    return [
        *mismatches(
            model,
            NAME,
            positions=("rope",),
            norm=("layernorm",),
            norm_position=("pre",),
            qk_norm=("none",),
            ffn=tuple(EXPORTED),
        ),
        *whole_rotation(model, NAME),
    ]


def uses_bias(model: ModelConfig) -> bool:
    """One switch for all linear layers."""
    return model.attention_bias != "none" or model.ffn_bias


def tensors(model: ModelConfig) -> list[HFTensor]:
    """All tensors of a file."""
    block, ours, width = "model.layers.{n}", "blocks.{n}", model.d_model
    q_width, kv_width = model.n_heads * model.head_width, model.n_kv_heads * model.head_width
    qkv, everywhere = model.attention_bias != "none", model.attention_bias == "all"
    layers = (
        (f"{block}.self_attn.q_proj", f"{ours}.attention.query", qkv, q_width),
        (f"{block}.self_attn.k_proj", f"{ours}.attention.key", qkv, kv_width),
        (f"{block}.self_attn.v_proj", f"{ours}.attention.value", qkv, kv_width),
        (f"{block}.self_attn.o_proj", f"{ours}.attention.output", everywhere, width),
        (f"{block}.mlp.c_fc", f"{ours}.feed_forward.up", model.ffn_bias, model.d_ff),
        (f"{block}.mlp.c_proj", f"{ours}.feed_forward.down", model.ffn_bias, width),
    )
    rows = norm_rows(model, f"{block}.input_layernorm", f"{ours}.attention_norm")
    rows += norm_rows(model, f"{block}.post_attention_layernorm", f"{ours}.feed_forward_norm")
    for stored, part, present, size in layers:
        rows.append(matrix(stored, part))
        if uses_bias(model):
            rows.append(bias(stored, part, present=present, width=size))
    return [
        matrix("model.embed_tokens", "embedding.tokens"),
        *in_each_block(model, rows),
        *norm_rows(model, "model.norm", "final_norm"),
        *([] if model.tie_embeddings else [matrix("lm_head", "head")]),
    ]


def norm_rows(model: ModelConfig, stored: str, part: str) -> list[HFTensor]:
    """Weight and bias of a LayerNorm that always has both."""
    return [matrix(stored, part), bias(stored, part, present=model.norm_bias, width=model.d_model)]


def to_json(model: ModelConfig, context: int) -> dict[str, Any]:
    """StarCoder2's part of config.json. Its code reads `head_dim` only where there is one."""
    head = {} if model.n_heads * model.head_width == model.d_model else {"head_dim": model.head_width}
    return (
        common_json(model, context)
        | head
        | {
            "hidden_act": EXPORTED[model.ffn],
            "norm_epsilon": model.norm_eps,
            "use_bias": uses_bias(model),
            "sliding_window": None,
            "residual_dropout": 0.0,
            "embedding_dropout": 0.0,
        }
    )


def from_json(file: ConfigFile) -> dict[str, Any]:
    """Values of our `model` section."""
    common = read_common(file)
    if file.values.get("sliding_window") is not None:
        file.problems.append("sliding_window: every layer of the decoder looks at all positions")
    biased = file.truth("use_bias", True)
    return {
        **common,
        **read_rope(file, common["max_seq_len"]),
        "norm": "layernorm",
        "norm_eps": file.number("norm_epsilon", 1e-5),
        "norm_bias": True,
        "ffn": read_activation(file, "hidden_act", "gelu_pytorch_tanh"),
        "ffn_bias": biased,
        "attention_bias": "all" if biased else "none",
        "tie_embeddings": file.truth("tie_word_embeddings", True),
    }


STARCODER2 = Family("starcoder2", "Starcoder2ForCausalLM", reasons, tensors, to_json, from_json)
