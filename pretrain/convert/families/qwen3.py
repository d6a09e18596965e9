"""transformers' Qwen3ForCausalLM: Llama with queries and keys normalized in each head, heads of any width."""

from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.config_file import ConfigFile
from pretrain.convert.families.family import Family, HFTensor, matrix, mismatches, whole_rotation
from pretrain.convert.families.llama import (
    around_blocks,
    attention_rows,
    common_json,
    feed_forward_rows,
    read_common,
    read_rms_swiglu,
)
from pretrain.convert.families.rope import read_rope

NAME = "Qwen3"


def reasons(model: ModelConfig) -> list[str]:
    """Why stock Qwen3 code cannot hold the model."""
    return [
        *mismatches(
            model,
            NAME,
            positions=("rope",),
            norm=("rmsnorm",),
            norm_position=("pre",),
            qk_norm=("head",),
            ffn=("swiglu",),
            ffn_bias=(False,),
        ),
        *whole_rotation(model, NAME),
    ]


def tensors(model: ModelConfig) -> list[HFTensor]:
    """All tensors of a file."""
    block = "model.layers.{n}"
    return around_blocks(
        model,
        [
            matrix(f"{block}.input_layernorm", "blocks.{n}.attention_norm"),
            *attention_rows(model, block),
            matrix(f"{block}.self_attn.q_norm", "blocks.{n}.attention.query_norm"),
            matrix(f"{block}.self_attn.k_norm", "blocks.{n}.attention.key_norm"),
            matrix(f"{block}.post_attention_layernorm", "blocks.{n}.feed_forward_norm"),
            *feed_forward_rows(model, block),
        ],
    )


def to_json(model: ModelConfig, context: int) -> dict[str, Any]:
    """Qwen3's part of config.json."""
    return common_json(model, context) | {
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "attention_bias": model.attention_bias != "none",
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": model.n_layers,
    }


def from_json(file: ConfigFile) -> dict[str, Any]:
    """Values of our `model` section."""
    common = read_common(file, head_dim=128)
    layers = file.values.get("layer_types") or []
    windowed = file.truth("use_sliding_window", False) and file.values.get("sliding_window") is not None
    if windowed or not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        file.problems.append("use_sliding_window, layer_types: every layer of the decoder looks at all positions")
    return {
        **common,
        **read_rms_swiglu(file, eps=1e-6),
        **read_rope(file, common["max_seq_len"]),
        "qk_norm": "head",
        "tie_embeddings": file.truth("tie_word_embeddings", False),
    }


QWEN3 = Family("qwen3", "Qwen3ForCausalLM", reasons, tensors, to_json, from_json)
