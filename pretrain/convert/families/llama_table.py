"""The families with Llama's names, as differences from Llama. llama_like.py says what each field means."""

from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.families.activations import EXPORTED
from pretrain.convert.families.config_file import ConfigFile
from pretrain.convert.families.family import full_rotation, heads_divide_width, heads_span_width
from pretrain.convert.families.llama_like import ATTENTION, SWIGLU, LlamaLike

_ATTENTION, _SWIGLU = tuple(ATTENTION.values()), tuple(SWIGLU.values())
_PRE_RMS = {
    "positions": ("rope",),
    "norm": ("rmsnorm",),
    "norm_position": ("pre",),
    "qk_norm": ("none",),
    "ffn": ("swiglu",),
}
_NO_WINDOW = "every layer of the decoder attends to all positions"

# transformers' LlamaForCausalLM: pre-norm with RMSNorm, rotary positions, SwiGLU, grouped queries.
LLAMA = LlamaLike(
    "llama",
    "LlamaForCausalLM",
    "Llama",
    allowed=_PRE_RMS,
    bias_switches={"attention_bias": _ATTENTION, "mlp_bias": _SWIGLU},
    conditions=(heads_divide_width, full_rotation),
    writes_head_dim=True,
    constants=lambda model: {"pretraining_tp": 1},
    # Buffers of Llama files from before transformers 4.32.
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
).family()


def _check_qwen3(file: ConfigFile, model: dict[str, Any]) -> None:
    layers = file.values.get("layer_types") or []
    windowed = file.truth("use_sliding_window", False) and file.values.get("sliding_window") is not None
    if windowed or not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        file.problems.append(f"use_sliding_window, layer_types: {_NO_WINDOW}")


# transformers' Qwen3ForCausalLM: queries and keys are normalized by head; heads of any width.
QWEN3 = LlamaLike(
    "qwen3",
    "Qwen3ForCausalLM",
    "Qwen3",
    allowed=_PRE_RMS | {"qk_norm": ("head",), "ffn_bias": (False,)},
    bias_switches={"attention_bias": _ATTENTION},
    default_head_dim=128,
    writes_head_dim=True,
    constants=lambda model: {
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": model.n_layers,
    },
    check=_check_qwen3,
).family()


def _olmo2_rope(model: ModelConfig) -> dict[str, Any]:
    # OLMo 2 of transformers 4 knows linear scaling under its first name, and refuses any other type.
    return {"rope_scaling": {"type": "linear", "factor": model.rope_factor}} if model.rope_scaling == "linear" else {}


# transformers' Olmo2ForCausalLM: norms after the sub-layers; queries and keys are normalized over all heads.
OLMO2 = LlamaLike(
    "olmo2",
    "Olmo2ForCausalLM",
    "OLMo 2",
    allowed=_PRE_RMS | {"norm_position": ("post",), "qk_norm": ("full",), "ffn_bias": (False,)},
    bias_switches={"attention_bias": _ATTENTION},
    block={
        "self_attn": "attention",
        "post_attention_layernorm": "attention_norm",
        "mlp": "feed_forward",
        "post_feedforward_layernorm": "feed_forward_norm",
    },
    default_eps=1e-5,
    constants=_olmo2_rope,
).family()


def _check_starcoder2(file: ConfigFile, model: dict[str, Any]) -> None:
    if file.values.get("sliding_window") is not None:
        file.problems.append(f"sliding_window: {_NO_WINDOW}")


# transformers' Starcoder2ForCausalLM: LayerNorm, two matrices of feed-forward, biases in all linear layers or in none.
STARCODER2 = LlamaLike(
    "starcoder2",
    "Starcoder2ForCausalLM",
    "StarCoder2",
    allowed=_PRE_RMS | {"norm": ("layernorm",), "ffn": tuple(EXPORTED)},
    bias_switches={"use_bias": (*_ATTENTION, "up", "down")},
    block={
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "feed_forward_norm",
        "self_attn": "attention",
        "mlp": "feed_forward",
    },
    feed_forward={"c_fc": "up", "c_proj": "down"},
    eps_key="norm_epsilon",
    default_eps=1e-5,
    default_bias=True,
    default_tied=True,
    constants=lambda model: {"sliding_window": None, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    check=_check_starcoder2,
).family()


def _check_stablelm(file: ConfigFile, model: dict[str, Any]) -> None:
    file.only("qk_layernorm", (False,), False, "the decoder shares one norm between heads, StableLM has one per head")
    file.only("use_parallel_residual", (False,), False, "the decoder's feed-forward network follows its attention")
    if model["head_dim"]:
        file.problems.append("head_dim: transformers has hidden_size / num_attention_heads in this architecture")


# transformers' StableLmForCausalLM: LayerNorm; rotary positions rotate a part of each head.
STABLELM = LlamaLike(
    "stablelm",
    "StableLmForCausalLM",
    "StableLM",
    allowed=_PRE_RMS | {"norm": ("layernorm",), "attention_bias": ("none", "qkv"), "ffn_bias": (False,)},
    bias_switches={"use_qkv_bias": ("query", "key", "value")},
    conditions=(heads_span_width,),
    eps_key="layer_norm_eps",
    default_eps=1e-5,
    default_rope_fraction=0.25,
    constants=lambda model: {"qk_layernorm": False, "use_parallel_residual": False, "hidden_dropout": 0.0},
    check=_check_stablelm,
).family()
