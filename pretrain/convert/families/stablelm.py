"""transformers' StableLmForCausalLM: LayerNorm, rotary positions that turn a part of each head, SwiGLU."""

from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.config_file import ConfigFile
from pretrain.convert.families.family import (
    Family,
    HFTensor,
    heads_fill_the_width,
    in_each_block,
    matrix,
    mismatches,
)
from pretrain.convert.families.llama import attention_rows, common_json, feed_forward_rows, read_common
from pretrain.convert.families.rope import read_rope, rope_json
from pretrain.convert.families.starcoder2 import norm_rows

NAME = "StableLM"


def reasons(model: ModelConfig) -> list[str]:
    """Why stock StableLM code cannot hold the model."""
    return [
        *mismatches(
            model,
            NAME,
            positions=("rope",),
            norm=("layernorm",),
            norm_position=("pre",),
            qk_norm=("none",),
            attention_bias=("none", "qkv"),
            ffn=("swiglu",),
            ffn_bias=(False,),
        ),
        *heads_fill_the_width(model, NAME),
    ]


def tensors(model: ModelConfig) -> list[HFTensor]:
    """All tensors of a file."""
    block = "model.layers.{n}"
    attention = [row for row in attention_rows(model, block) if row.name != f"{block}.self_attn.o_proj.bias"]
    rows = [
        *norm_rows(model, f"{block}.input_layernorm", "blocks.{n}.attention_norm"),
        *attention,
        *norm_rows(model, f"{block}.post_attention_layernorm", "blocks.{n}.feed_forward_norm"),
        *feed_forward_rows(model, block),
    ]
    return [
        matrix("model.embed_tokens", "embedding.tokens"),
        *in_each_block(model, rows),
        *norm_rows(model, "model.norm", "final_norm"),
        *([] if model.tie_embeddings else [matrix("lm_head", "head")]),
    ]


def to_json(model: ModelConfig, context: int) -> dict[str, Any]:
    """StableLM's part of config.json."""
    return (
        common_json(model, context)
        | rope_json(model, partial=True)
        | {
            "hidden_act": "silu",
            "layer_norm_eps": model.norm_eps,
            "use_qkv_bias": model.attention_bias != "none",
            "qk_layernorm": False,
            "use_parallel_residual": False,
            "hidden_dropout": 0.0,
        }
    )


def from_json(file: ConfigFile) -> dict[str, Any]:
    """Values of our `model` section."""
    file.only("qk_layernorm", (False,), False, "the decoder has one norm for all heads, StableLM one for each")
    file.only("use_parallel_residual", (False,), False, "the decoder's feed-forward network follows its attention")
    file.only("hidden_act", ("silu", "swish"), "silu", "the decoder's gated feed-forward network has SiLU")
    common = read_common(file)
    if common["head_dim"]:
        file.problems.append("head_dim: transformers has hidden_size / num_attention_heads in this architecture")
    return {
        **common,
        **read_rope(file, common["max_seq_len"], fraction=0.25),
        "norm": "layernorm",
        "norm_eps": file.number("layer_norm_eps", 1e-5),
        "norm_bias": True,
        "ffn": "swiglu",
        "attention_bias": "qkv" if file.truth("use_qkv_bias", False) else "none",
        "tie_embeddings": file.truth("tie_word_embeddings", False),
    }


STABLELM = Family("stablelm", "StableLmForCausalLM", reasons, tensors, to_json, from_json)
