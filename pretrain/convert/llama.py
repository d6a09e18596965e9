"""Decoder → transformers' LlamaForCausalLM: which models it can hold, config.json, and the names of the tensors.

The decoder computes what Llama computes (rotate-half RoPE, `weight * x` after the norm's rounding, Linear weights as
(out, in)), so that tensors are renamed and nothing else: no permutation, no transposition.

Another family is another module with these three functions.
"""

import re
from typing import Any

from pretrain.config.schema import ModelConfig
from pretrain.convert.tokenizer_json import SpecialTokens
from pretrain.errors import UserError

OUTER_NAMES = {
    "embedding.tokens.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
BLOCK_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
}


def reasons_against_llama(model: ModelConfig) -> list[str]:
    """Every setting that stock Llama code has no place for; empty when it can hold the model."""
    reasons = []
    if model.positions != "rope":
        reasons.append(f"model.positions={model.positions}: Llama has rope only")
    if model.norm != "rmsnorm":
        reasons.append(f"model.norm={model.norm}: Llama has rmsnorm only")
    if model.ffn != "swiglu":
        reasons.append(f"model.ffn={model.ffn}: Llama has swiglu only")
    return reasons


def refuse_unless_llama(model: ModelConfig) -> None:
    """Raise UserError with every reason of `reasons_against_llama`."""
    reasons = reasons_against_llama(model)
    if reasons:
        raise UserError(
            "no stock Llama can hold this model:\n" + "\n".join(f"  - {reason}" for reason in reasons),
            hint="only models with rope, rmsnorm and swiglu are exported; the checkpoint itself stays usable",
        )


def llama_name(name: str) -> str:
    """Name of a decoder parameter in LlamaForCausalLM. Raises UserError for one that Llama does not have."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None or match[2] not in BLOCK_NAMES:
        raise UserError(f"Llama has no parameter for {name}")
    return f"model.layers.{match[1]}.{BLOCK_NAMES[match[2]]}"


def llama_config(model: ModelConfig, tokens: SpecialTokens, seq_len: int, dtype: str) -> dict[str, Any]:
    """Contents of config.json.

    `seq_len` is the context length to claim, in tokens; `dtype` transformers' name of the stored type (`float32`,
    `bfloat16`). RoPE and the type appear under the names of both generations: transformers 4 reads `rope_theta` and
    `torch_dtype`, transformers 5 `rope_parameters` and `dtype`, and each silently takes its default (theta 10,000)
    where its own is missing.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": seq_len,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": model.init_std,
        "pretraining_tp": 1,
        "use_cache": True,
        "bos_token_id": tokens.bos[0],
        "eos_token_id": tokens.eos[0],
        "pad_token_id": tokens.pad[0],
        "torch_dtype": dtype,
        "dtype": dtype,
    }
