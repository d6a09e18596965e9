"""transformers' Olmo2ForCausalLM: what a sub-layer gives is normalized, and all heads of queries or keys together are."""

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

NAME = "OLMo 2"


def reasons(model: ModelConfig) -> list[str]:
    """Why stock OLMo 2 code cannot hold the model."""
    return [
        *mismatches(
            model,
            NAME,
            positions=("rope",),
            norm=("rmsnorm",),
            norm_position=("post",),
            qk_norm=("full",),
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
            *attention_rows(model, block),
            matrix(f"{block}.self_attn.q_norm", "blocks.{n}.attention.query_norm"),
            matrix(f"{block}.self_attn.k_norm", "blocks.{n}.attention.key_norm"),
            matrix(f"{block}.post_attention_layernorm", "blocks.{n}.attention_norm"),
            *feed_forward_rows(model, block),
            matrix(f"{block}.post_feedforward_layernorm", "blocks.{n}.feed_forward_norm"),
        ],
    )


def to_json(model: ModelConfig, context: int) -> dict[str, Any]:
    """OLMo 2's part of config.json. Its code reads `head_dim` only where there is one.

    That of transformers 4 knows a linear scaling under its first name, and refuses to load any other.
    """
    head: dict[str, Any] = {} if model.n_heads * model.head_width == model.d_model else {"head_dim": model.head_width}
    if model.rope_scaling == "linear":
        head["rope_scaling"] = {"type": "linear", "factor": model.rope_factor}
    return (
        common_json(model, context)
        | head
        | {
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_eps,
            "attention_bias": model.attention_bias != "none",
        }
    )


def from_json(file: ConfigFile) -> dict[str, Any]:
    """Values of our `model` section."""
    common = read_common(file)
    return {
        **common,
        **read_rms_swiglu(file, eps=1e-5),
        **read_rope(file, common["max_seq_len"]),
        "norm_position": "post",
        "qk_norm": "full",
        "tie_embeddings": file.truth("tie_word_embeddings", False),
    }


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", reasons, tensors, to_json, from_json)
