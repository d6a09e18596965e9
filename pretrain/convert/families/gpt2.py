"""transformers' GPT2LMHeadModel: LayerNorm, a table of positions, all matrices transposed, biases everywhere.

Queries, keys and values are one matrix, (in, out) like all of its `Conv1D`. Biases that our model lacks are written as
zeros, sinusoidal positions as a table; after an import both are parameters.
"""

from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.activations import EXPORTED, read_activation
from pretrain.convert.families.config_file import ConfigFile
from pretrain.convert.families.family import (
    Family,
    HFTensor,
    bias,
    head,
    heads_span_width,
    in_each_block,
    norm,
    unsupported_settings,
    weight,
)

NAME = "GPT-2"
# The causal mask and its fill value, in files from before transformers 4.29.
IGNORED = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)


def incompatibilities(model: ModelConfig) -> list[str]:
    """A sentence for each setting that stock GPT-2 code lacks."""
    found = unsupported_settings(
        model,
        NAME,
        positions=("learned", "sinusoidal"),
        norm=("layernorm",),
        norm_position=("pre",),
        qk_norm=("none",),
        ffn=tuple(EXPORTED),
    )
    if model.n_kv_heads != model.n_heads:
        found.append(f"model.n_kv_heads={model.n_kv_heads}: {NAME} has as many as n_heads={model.n_heads} only")
    return found + heads_span_width(model, NAME)


def tensors(model: ModelConfig) -> list[HFTensor]:
    """All tensors of a file."""
    theirs, ours, d_model = "transformer.h.{n}", "blocks.{n}", model.d_model
    qkv = [f"{ours}.attention.{name}" for name in ("query", "key", "value")]
    has_qkv_bias, has_output_bias = model.attention_bias != "none", model.attention_bias == "all"
    block = [
        *norm(model, f"{theirs}.ln_1", f"{ours}.attention_norm"),
        weight(f"{theirs}.attn.c_attn", *qkv, transposed=True),
        bias(f"{theirs}.attn.c_attn", *qkv, present=has_qkv_bias, width=3 * d_model),
        weight(f"{theirs}.attn.c_proj", f"{ours}.attention.output", transposed=True),
        bias(f"{theirs}.attn.c_proj", f"{ours}.attention.output", present=has_output_bias, width=d_model),
        *norm(model, f"{theirs}.ln_2", f"{ours}.feed_forward_norm"),
        weight(f"{theirs}.mlp.c_fc", f"{ours}.feed_forward.up", transposed=True),
        bias(f"{theirs}.mlp.c_fc", f"{ours}.feed_forward.up", present=model.ffn_bias, width=model.d_ff),
        weight(f"{theirs}.mlp.c_proj", f"{ours}.feed_forward.down", transposed=True),
        bias(f"{theirs}.mlp.c_proj", f"{ours}.feed_forward.down", present=model.ffn_bias, width=d_model),
    ]
    return [
        weight("transformer.wte", "embedding.tokens"),
        _positions(model),
        *in_each_block(model, block),
        *norm(model, "transformer.ln_f", "final_norm"),
        *head(model),
    ]


def _positions(model: ModelConfig) -> HFTensor:
    if model.positions == "learned":
        return weight("transformer.wpe", "embedding.positions")
    return HFTensor("transformer.wpe.weight", fill="sinusoids", shape=(model.max_seq_len, model.d_model))


def context(model: ModelConfig, seq_len: int) -> int:
    """All rows of the table, including those beyond the training length."""
    return model.max_seq_len


def to_json(model: ModelConfig, context: int) -> dict[str, Any]:
    """GPT-2's part of config.json."""
    return {
        "vocab_size": model.vocab_size,
        "n_positions": context,
        "n_ctx": context,
        "n_embd": model.d_model,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_inner": model.d_ff,
        "activation_function": EXPORTED[model.ffn],
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "initializer_range": model.init_std,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "use_cache": True,
    }


def from_json(file: ConfigFile) -> dict[str, Any]:
    """Values of our `model` section. All biases become parameters: a file does not say which ones are only zeros."""
    scores = "the decoder divides scores by sqrt(head_dim)"
    file.only("scale_attn_weights", (True,), True, scores)
    file.only("scale_attn_by_inverse_layer_idx", (False,), False, scores)
    file.only("add_cross_attention", (False,), False, "the decoder has no cross-attention")
    # transformers reads either name of a size.
    width, heads = _either(file, "n_embd", "hidden_size"), _either(file, "n_head", "num_attention_heads")
    return {
        "vocab_size": file.integer("vocab_size"),
        "d_model": width,
        "d_ff": file.integer("n_inner", 4 * width),
        "n_layers": _either(file, "n_layer", "num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "max_seq_len": _either(file, "n_positions", "max_position_embeddings"),
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": file.number("layer_norm_epsilon", 1e-5),
        "norm_bias": True,
        "attention_bias": "all",
        "ffn": read_activation(file, "activation_function", "gelu_new"),
        "ffn_bias": True,
        "tie_embeddings": file.truth("tie_word_embeddings", True),
        "init_std": file.number("initializer_range", 0.02) or 0.02,
    }


def _either(file: ConfigFile, key: str, other: str) -> int:
    return file.integer(key if key in file.values or other not in file.values else other)


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    incompatibilities,
    tensors,
    to_json,
    from_json,
    context,
    ignored=IGNORED,
    prefix="transformer.",
)
