"""Small models that stock architectures hold: each family, and each setting that it has a place for."""

from typing import Any

LAYERNORM = {"norm": "layernorm"}
LEARNED = {**LAYERNORM, "positions": "learned", "n_kv_heads": 4}
BIASES = {"norm_bias": True, "attention_bias": "all", "ffn_bias": True}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_seq_len": 32}
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_seq_len": 32}
OLMO2 = {"qk_norm": "full", "norm_position": "post"}

# Changes of tests.support.weight_source.small_model, by the family that holds the model, and a word on it.
HELD: dict[tuple[str, str], dict[str, Any]] = {
    ("llama", "plain"): {},
    ("llama", "biases, wide heads, tied"): {
        "attention_bias": "all",
        "ffn_bias": True,
        "head_dim": 24,
        "tie_embeddings": True,
    },
    ("llama", "biases but for the output"): {"attention_bias": "qkv"},
    ("llama", "linear"): {"rope_scaling": "linear", "rope_factor": 4.0},
    ("llama", "llama3"): {**LLAMA3, "rope_theta": 500_000.0},
    ("llama", "yarn"): YARN,
    ("qwen3", "plain"): {"qk_norm": "head"},
    ("qwen3", "biases, wide heads, tied"): {
        "qk_norm": "head",
        "attention_bias": "all",
        "head_dim": 32,
        "tie_embeddings": True,
        "norm_eps": 1e-6,
    },
    ("olmo2", "plain"): OLMO2,
    ("olmo2", "biases, wide heads, linear"): {
        **OLMO2,
        "rope_scaling": "linear",
        "rope_factor": 4.0,
        "attention_bias": "all",
        "head_dim": 32,
    },
    ("olmo2", "yarn"): {**OLMO2, **YARN},
    ("gpt2", "without biases, tied"): {**LEARNED, "ffn": "gelu", "tie_embeddings": True},
    ("gpt2", "biases"): {**LEARNED, **BIASES, "ffn": "gelu_tanh"},
    ("gpt2", "sinusoids, some biases"): {
        **LEARNED,
        "positions": "sinusoidal",
        "ffn": "relu",
        "attention_bias": "qkv",
        "d_ff": 100,
    },
    ("starcoder2", "without biases"): {**LAYERNORM, "ffn": "gelu"},
    ("starcoder2", "biases, wide heads, tied"): {
        **LAYERNORM,
        **BIASES,
        "ffn": "gelu_tanh",
        "tie_embeddings": True,
        "head_dim": 24,
    },
    ("starcoder2", "some biases"): {**LAYERNORM, "ffn": "relu", "ffn_bias": True},
    ("stablelm", "plain"): {**LAYERNORM, "rope_fraction": 0.25},
    ("stablelm", "biases, tied, llama3"): {
        **LAYERNORM,
        **LLAMA3,
        "rope_fraction": 0.5,
        "attention_bias": "qkv",
        "norm_bias": True,
        "tie_embeddings": True,
    },
}
IDS = [f"{family}: {what}" for family, what in HELD]
# One of each, with as many different tensors as there are.
FULLEST = {
    "llama": HELD["llama", "biases, wide heads, tied"],
    "qwen3": HELD["qwen3", "biases, wide heads, tied"],
    "olmo2": HELD["olmo2", "biases, wide heads, linear"],
    "gpt2": HELD["gpt2", "biases"],
    "starcoder2": HELD["starcoder2", "biases, wide heads, tied"],
    "stablelm": HELD["stablelm", "biases, tied, llama3"],
}
