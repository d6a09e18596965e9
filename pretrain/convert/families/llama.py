"""transformers' LlamaForCausalLM: RMSNorm before each sub-layer, rotary positions, SwiGLU, grouped queries.

The decoder computes what Llama computes (rotate-half RoPE, `weight * x` after the norm's rounding, Linear weights as
(out, in)), so that tensors are renamed and nothing else: no permutation, no transposition.
"""

from typing import Any

from pretrain.config.schema import ModelConfig
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
from pretrain.convert.families.rope import read_rope, rope_json

NAME = "Llama"
# Buffers of Llama files from before transformers 4.32.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def reasons(model: ModelConfig) -> list[str]:
    """Why stock Llama code cannot hold the model."""
    found = mismatches(
        model,
        NAME,
        positions=("rope",),
        norm=("rmsnorm",),
        norm_position=("pre",),
        qk_norm=("none",),
        ffn=("swiglu",),
    )
    if model.d_model % model.n_heads:
        found.append(f"model.d_model={model.d_model}: {NAME} has a multiple of n_heads={model.n_heads} only")
    return found + whole_rotation(model, NAME)


def attention_rows(model: ModelConfig, block: str) -> list[HFTensor]:
    """Queries, keys, values and output, as Llama's descendants name them too."""
    q_width, kv_width = model.n_heads * model.head_width, model.n_kv_heads * model.head_width
    shapes = {"q": ("query", q_width), "k": ("key", kv_width), "v": ("value", kv_width), "o": ("output", model.d_model)}
    rows = []
    for letter, (ours, width) in shapes.items():
        stored, part = f"{block}.self_attn.{letter}_proj", f"blocks.{{n}}.attention.{ours}"
        rows.append(matrix(stored, part))
        if model.attention_bias != "none":
            rows.append(bias(stored, part, present=letter != "o" or model.attention_bias == "all", width=width))
    return rows


def feed_forward_rows(model: ModelConfig, block: str) -> list[HFTensor]:
    """Gate, up and down."""
    rows = []
    for name in ("gate", "up", "down"):
        stored, part = f"{block}.mlp.{name}_proj", f"blocks.{{n}}.feed_forward.{name}"
        rows.append(matrix(stored, part))
        if model.ffn_bias:
            rows.append(bias(stored, part, present=True, width=0))
    return rows


def around_blocks(model: ModelConfig, rows: list[HFTensor]) -> list[HFTensor]:
    """Embedding, the rows of each block, last norm, and the head unless it is tied."""
    head = [] if model.tie_embeddings else [matrix("lm_head", "head")]
    return [
        matrix("model.embed_tokens", "embedding.tokens"),
        *in_each_block(model, rows),
        matrix("model.norm", "final_norm"),
        *head,
    ]


def tensors(model: ModelConfig) -> list[HFTensor]:
    """All tensors of a file."""
    block = "model.layers.{n}"
    return around_blocks(
        model,
        [
            matrix(f"{block}.input_layernorm", "blocks.{n}.attention_norm"),
            *attention_rows(model, block),
            matrix(f"{block}.post_attention_layernorm", "blocks.{n}.feed_forward_norm"),
            *feed_forward_rows(model, block),
        ],
    )


def common_json(model: ModelConfig, context: int) -> dict[str, Any]:
    """What the families with Llama's names have in common."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "max_position_embeddings": context,
        **rope_json(model),
        "tie_word_embeddings": model.tie_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": model.init_std,
        "use_cache": True,
    }


def to_json(model: ModelConfig, context: int) -> dict[str, Any]:
    """Llama's part of config.json."""
    return common_json(model, context) | {
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "attention_bias": model.attention_bias != "none",
        "mlp_bias": model.ffn_bias,
        "pretraining_tp": 1,
    }


def read_common(file: ConfigFile, *, head_dim: int | None = None) -> dict[str, Any]:
    """The way back of `common_json`; `head_dim` is the family's default where it is not hidden_size over heads."""
    width, heads = file.integer("hidden_size"), file.integer("num_attention_heads")
    positions = file.integer("max_position_embeddings")
    head = file.integer("head_dim", head_dim or max(1, width // heads))
    return {
        "vocab_size": file.integer("vocab_size"),
        "d_model": width,
        "d_ff": file.integer("intermediate_size"),
        "n_layers": file.integer("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": file.integer("num_key_value_heads", heads),
        "head_dim": 0 if head * heads == width else head,
        "max_seq_len": positions,
        "init_std": file.number("initializer_range", 0.02) or 0.02,
        "positions": "rope",
    }


def read_rms_swiglu(file: ConfigFile, *, eps: float) -> dict[str, Any]:
    """RMSNorm, SwiGLU and biases of attention; `eps` is the family's default."""
    file.only("hidden_act", ("silu", "swish"), "silu", "the decoder's gated feed-forward network has SiLU")
    return {
        "norm": "rmsnorm",
        "norm_eps": file.number("rms_norm_eps", eps),
        "ffn": "swiglu",
        "attention_bias": "all" if file.truth("attention_bias", False) else "none",
    }


def from_json(file: ConfigFile) -> dict[str, Any]:
    """Values of our `model` section."""
    common = read_common(file)
    return {
        **common,
        **read_rms_swiglu(file, eps=1e-6),
        **read_rope(file, common["max_seq_len"]),
        "ffn_bias": file.truth("mlp_bias", False),
        "tie_embeddings": file.truth("tie_word_embeddings", False),
    }


LLAMA = Family("llama", "LlamaForCausalLM", reasons, tensors, to_json, from_json, ignored=IGNORED)
