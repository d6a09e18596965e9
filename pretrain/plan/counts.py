"""Parameter count, FLOPs and batch arithmetic of a configuration.

Standard library only: a login node without torch can plan. Tests compare each count with the real model.
"""

from dataclasses import dataclass

from pretrain.config.schema import Config, ModelConfig


def count_parameters(model: ModelConfig) -> int:
    """Trainable parameters; a tied embedding counts once."""
    width, q_width, kv_width = model.d_model, model.n_heads * model.head_width, model.n_kv_heads * model.head_width
    attention = 2 * width * q_width + 2 * width * kv_width
    attention += {"none": 0, "qkv": q_width + 2 * kv_width, "all": q_width + 2 * kv_width + width}[model.attention_bias]
    attention += {"none": 0, "head": 2 * model.head_width, "full": q_width + kv_width}[model.qk_norm]
    ups = 2 if model.ffn == "swiglu" else 1  # up and gate
    feed_forward = (ups + 1) * width * model.d_ff + (ups * model.d_ff + width if model.ffn_bias else 0)
    norms = (2 * model.n_layers + 1) * width * (2 if model.norm_bias and model.norm == "layernorm" else 1)
    embeddings = (1 if model.tie_embeddings else 2) * model.vocab_size * width
    positions = model.max_seq_len * width if model.positions == "learned" else 0
    return model.n_layers * (attention + feed_forward) + norms + embeddings + positions


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """FLOPs per training token, forward and backward; a multiply-add counts as two.

    6 · (parameters that multiply) + 6 · n_layers · (width of all heads) · seq_len for the attention scores and mixing:
    Chowdhery et al. 2022, "PaLM", appendix B, https://arxiv.org/abs/2204.02311, with half of its attention term, because a
    causal model needs only the lower triangle. Excludes the embedding lookup and the recomputation of activation
    checkpointing.
    """
    lookups = 0 if model.tie_embeddings else model.vocab_size * model.d_model
    if model.positions == "learned":
        lookups += model.max_seq_len * model.d_model
    return 6.0 * (count_parameters(model) - lookups) + 6.0 * model.n_layers * model.n_heads * model.head_width * seq_len


@dataclass(frozen=True)
class BatchPlan:
    """Division of one optimizer step among the processes."""

    sequences_per_rank: int
    grad_accum_steps: int
    tokens_per_step: int


def plan_batch(config: Config, world_size: int) -> BatchPlan:
    """Plan one step; `check_world` has checked that it divides evenly."""
    per_rank = config.batch.global_batch_size // world_size
    return BatchPlan(
        sequences_per_rank=per_rank,
        grad_accum_steps=per_rank // config.batch.micro_batch_size,
        tokens_per_step=config.batch.global_batch_size * config.data.seq_len,
    )
