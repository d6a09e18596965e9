"""transformers' GPT2LMHeadModel: LayerNorm, a table of positions, all matrices transposed, biases everywhere.

Queries, keys and values are one matrix, (in, out) as all of its `Conv1D`. Biases that our model has not are zeros, and
sinusoidal positions are written as the table that they are: a model that is read back has both as parameters.
"""

from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.activations import EXPORTED, read_activation
from pretrain.convert.families.config_file import ConfigFile
from pretrain.convert.families.family import (
    Family,
    HFTensor,
    bias,
    heads_fill_the_width,
    in_each_block,
    matrix,
    mismatches,
)

NAME = "GPT-2"
# The triangle of the causal mask and its filling, in files from before transformers 4.29.
IGNORED = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)


def reasons(model: ModelConfig) -> list[str]:
    """Why stock GPT-2 code cannot hold the model."""
    found = mismatches(
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
    return found + heads_fill_the_width(model, NAME)


def tensors(model: ModelConfig) -> list[HFTensor]:
    """All tensors of a file."""
    block, ours, width = "transformer.h.{n}", "blocks.{n}", model.d_model
    attention = [f"{ours}.attention.{name}" for name in ("query", "key", "value")]
    biased = model.attention_bias != "none"
    fused, whole = f"{block}.attn.c_attn", f"{block}.attn.c_proj"
    up, down = f"{block}.mlp.c_fc", f"{block}.mlp.c_proj"

    def norm(stored: str, part: str) -> list[HFTensor]:
        return [matrix(stored, part), bias(stored, part, present=model.norm_bias, width=width)]

    rows = [
        *norm(f"{block}.ln_1", f"{ours}.attention_norm"),
        matrix(fused, *attention, transposed=True),
        bias(fused, *attention, present=biased, width=3 * width),
        matrix(whole, f"{ours}.attention.output", transposed=True),
        bias(whole, f"{ours}.attention.output", present=model.attention_bias == "all", width=width),
        *norm(f"{block}.ln_2", f"{ours}.feed_forward_norm"),
        matrix(up, f"{ours}.feed_forward.up", transposed=True),
        bias(up, f"{ours}.feed_forward.up", present=model.ffn_bias, width=model.d_ff),
        matrix(down, f"{ours}.feed_forward.down", transposed=True),
        bias(down, f"{ours}.feed_forward.down", present=model.ffn_bias, width=width),
    ]
    return [
        matrix("transformer.wte", "embedding.tokens"),
        _positions(model),
        *in_each_block(model, rows),
        *norm("transformer.ln_f", "final_norm"),
        *([] if model.tie_embeddings else [matrix("lm_head", "head")]),
    ]


def _positions(model: ModelConfig) -> HFTensor:
    if model.positions == "learned":
        return matrix("transformer.wpe", "embedding.positions")
    return HFTensor("transformer.wpe.weight", fill="sinusoids", shape=(model.max_seq_len, model.d_model))


def context(model: ModelConfig, seq_len: int) -> int:
    """A table has the rows that it has, those beyond the length of the training too."""
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
    """Values of our `model` section. A file does not say which biases are nothing but zeros: all become parameters."""
    scores = "the decoder's scores are divided by the root of the head's width"
    file.only("scale_attn_weights", (True,), True, scores)
    file.only("scale_attn_by_inverse_layer_idx", (False,), False, scores)
    file.only("add_cross_attention", (False,), False, "the decoder attends to its own text")
    # Each name has an older one, which transformers still reads.
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
    reasons,
    tensors,
    to_json,
    from_json,
    context,
    ignored=IGNORED,
    prefix="transformer.",
)
