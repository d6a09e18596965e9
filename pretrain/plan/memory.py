"""Peak memory per process, from the configuration alone: a login node can check it before a job is queued.

Model states after Rajbhandari et al. 2020, "ZeRO", section 3, https://arxiv.org/abs/1910.02054, with this engine's choices:
fp32 masters and moments, and gradients accumulated in fp32 for bf16 at stages 2 and 3 (docs/decisions/0002-deepspeed.md).
Offload after Ren et al. 2021, "ZeRO-Offload", https://arxiv.org/abs/2101.06840, and Rajbhandari et al. 2021,
"ZeRO-Infinity", https://arxiv.org/abs/2104.07857.

Activations are counted as in Korthikanti et al. 2022, section 4, https://arxiv.org/abs/2205.05198, for this decoder: tensors
saved for backward, without dropout and with fused attention; a test counts the tensors of the real model. Not counted:
CUDA context, NCCL, allocator fragmentation, kernel workspaces; together some GiB.

Standard library only. Sizes are in bytes.
"""

from dataclasses import dataclass, replace
from typing import Any

from pretrain.config.schema import Config, ModelConfig
from pretrain.plan.counts import count_parameters

FP32 = 4
MOMENTS = 2 * FP32
LARGEST_BUCKET = 500_000_000  # elements; same default as engine.py
LARGEST_GATHERED = 1_000_000_000  # elements: DeepSpeed's default of stage3_max_live_parameters


@dataclass(frozen=True)
class MemoryPlan:
    """Peak bytes of one process. `host`: bytes offloaded to host memory."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int  # stage 3: gathered parameters of the active blocks
    buckets: int  # communication buckets
    activations: int
    head: int  # gradients that the loss keeps, and logits of a chunk
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        states = self.parameters + self.gradients + self.optimizer
        return states + self.gathered + self.buckets + self.activations + self.head


def plan_memory(config: Config, world_size: int) -> MemoryPlan:
    """Peak of each part over a step."""
    stage, options = config.engine.zero_stage, _zero_options(config)
    count, size = count_parameters(config.model), _size(config)
    parameters = size * count
    gradients = _gradient_size(config) * count
    # In fp32 at stage 0 the parameters are their own master weights.
    optimizer = (MOMENTS if stage == 0 else FP32 + MOMENTS) * count
    if stage >= 1:
        optimizer //= world_size
    if stage >= 2:
        gradients //= world_size
    if stage >= 3:
        parameters //= world_size
    bucket = int(options.get("reduce_bucket_size", min(LARGEST_BUCKET, count)))
    live = int(options.get("stage3_max_live_parameters", LARGEST_GATHERED))
    plan = MemoryPlan(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        gathered=size * max(min(count, live), largest_layer(config.model)) if stage == 3 else 0,
        buckets=size * bucket if stage >= 1 else 0,
        activations=activation_bytes(config),
        head=head_bytes(config),
    )
    return _offloaded(plan, config)


def with_stage(config: Config, stage: int, *, optimizer: bool = False, parameters: bool = False) -> Config:
    """The same run at another ZeRO stage, with or without host offload."""
    options: dict[str, Any] = {
        key: value for key, value in _zero_options(config).items() if not key.startswith("offload_")
    }
    if optimizer:
        options["offload_optimizer"] = {"device": "cpu"}
    if parameters:
        options["offload_param"] = {"device": "cpu"}
    deepspeed = {**config.engine.deepspeed, "zero_optimization": options}
    return replace(config, engine=replace(config.engine, zero_stage=stage, deepspeed=deepspeed))


def offload_devices(config: Config) -> tuple[str, str]:
    """Offload devices of (optimizer states, parameters): `none`, `cpu` or `nvme`."""
    found = (_zero_options(config).get(name) for name in ("offload_optimizer", "offload_param"))
    optimizer, parameters = (
        str(section.get("device", "none")) if isinstance(section, dict) else "none" for section in found
    )
    return optimizer, parameters


def block_bytes_per_token(model: ModelConfig, seq_len: int, size: int) -> int:
    """Bytes saved for backward by one block, per token; `size`: bytes of an activation.

    - two norms: input (fp32 for RMSNorm), RMSNorm's scaled output and root mean square, or LayerNorm's mean and deviation
    - the norms of queries and keys likewise, if any
    - queries, keys, values, attention output; with fused attention also the log-sum-exp of each row
    - feed-forward: gate, up, activated gate and product for SwiGLU; up and activation for GELU; activation for ReLU
    """
    norms = 2 * (size * model.d_model + _norm_bytes(model, model.d_model, size))
    q_width, kv_width = model.n_heads * model.head_width, model.n_kv_heads * model.head_width
    attention = 2 * size * (q_width + kv_width)
    if model.positions == "rope" and model.rotary_width < model.head_width:
        attention += size * q_width  # concatenation changes the layout, so the attention output is copied
    if model.qk_norm == "head":
        attention += (model.n_heads + model.n_kv_heads) * _norm_bytes(model, model.head_width, size)
    elif model.qk_norm == "full":
        attention += _norm_bytes(model, q_width, size) + _norm_bytes(model, kv_width, size)
    if model.attention == "sdpa":
        attention += FP32 * model.n_heads
    else:  # softmax output in fp32, and a copy in the activation type if smaller
        attention += (FP32 + (size if size < FP32 else 0)) * model.n_heads * seq_len
    tensors = {"swiglu": 4, "gelu": 2, "gelu_tanh": 2, "relu": 1}[model.ffn]
    return norms + attention + tensors * size * model.d_ff


def activation_bytes(config: Config) -> int:
    """Bytes kept from forward to backward: all blocks, or the inputs of recomputed blocks plus one of these."""
    model, size, every = config.model, _size(config), config.engine.activation_checkpoint_every
    tokens = config.batch.micro_batch_size * config.data.seq_len
    recomputed = len(range(0, model.n_layers, every)) if every else 0
    block = block_bytes_per_token(model, config.data.seq_len, size)
    at_once = model.n_layers - recomputed + (1 if recomputed else 0)
    final_norm = _norm_bytes(model, model.d_model, size)
    mask = size * config.data.seq_len if config.data.document_mask else 0
    return tokens * (at_once * block + recomputed * size * model.d_model + final_norm + mask)


def head_bytes(config: Config) -> int:
    """Chunked loss, at its peak: what it keeps for backward, and the larger of two moments within a chunk.

    Kept: gradients of the hidden states, and of the head weight in fp32. Moments: fp32 logits with logsumexp's copy of them;
    their gradient in the model's type with its product of the head weight's size.
    """
    model, size = config.model, _size(config)
    tokens = config.batch.micro_batch_size * config.data.seq_len
    logits = min(tokens, config.loss.chunk_tokens) * model.vocab_size
    weight = model.vocab_size * model.d_model
    return size * tokens * model.d_model + FP32 * weight + max(2 * FP32 * logits, size * (logits + weight))


def largest_layer(model: ModelConfig) -> int:
    """Parameters of the largest part that ZeRO-3 gathers at once: a matrix of a block, or an embedding."""
    return model.d_model * max(model.d_ff, model.vocab_size, model.d_model)


def _norm_bytes(model: ModelConfig, width: int, size: int) -> int:
    """Per position, without the output. On CUDA, LayerNorm's fp32 statistics take 4 bytes more."""
    return (FP32 + size) * width + FP32 if model.norm == "rmsnorm" else size * (width + 2)


def _offloaded(plan: MemoryPlan, config: Config) -> MemoryPlan:
    """Move offloaded parts to the host. Gradients follow the optimizer states, which update there; nvme needs only buffers."""
    optimizer, parameters = offload_devices(config)
    host = plan.host
    if optimizer != "none" and config.engine.zero_stage >= 1:
        host += plan.optimizer + plan.gradients if optimizer == "cpu" else 0
        plan = replace(plan, optimizer=0, gradients=0)
    if parameters != "none" and config.engine.zero_stage == 3:
        host += plan.parameters if parameters == "cpu" else 0
        plan = replace(plan, parameters=0)
    return replace(plan, host=host)


def _gradient_size(config: Config) -> int:
    types = config.engine.deepspeed.get("data_types")
    chosen = types.get("grad_accum_dtype") if isinstance(types, dict) else None
    if chosen is not None:
        return FP32 if chosen == "fp32" else 2
    summed_in_fp32 = config.engine.precision == "bf16" and config.engine.zero_stage >= 2
    return FP32 if summed_in_fp32 else _size(config)


def _size(config: Config) -> int:
    return FP32 if config.engine.precision == "fp32" else 2


def _zero_options(config: Config) -> dict[str, Any]:
    options = config.engine.deepspeed.get("zero_optimization", {})
    return options if isinstance(options, dict) else {}
