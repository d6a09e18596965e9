"""Every knob of a run: type, default, unit and range, declared once.

Generated from these declarations: the range checks in `build.py`, docs/reference/config.md and `pretrain config show`.
Precedence: these defaults < the YAML file (after the file it `extends:`) < `key=value` on the command line.
"""

from dataclasses import dataclass, field
from typing import Any

# Model keys that may differ from a checkpoint's: the weights stay valid with any value.
FREE_MODEL_KEYS = ("attention", "init_std")


def knob(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its help text, choices and range; `above` and `below` are exclusive bounds."""
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "below": below,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """Run folder, initial weights and reproducibility."""

    dir: str = knob("runs/default", "Run folder: config, metrics, TensorBoard, checkpoints, status and logs.")
    init_from: str | None = knob(
        None,
        "Initial weights, instead of random initialization: a run, a checkpoint folder or a Hugging Face directory. Training "
        "begins at step 0 with a fresh optimizer; ignored once the run has a checkpoint of its own.",
    )
    seed: int = knob(1234, "Seed of the weight initialization and of each rank's random generators.", minimum=0)
    deterministic: bool = knob(True, "Use deterministic kernels only: bit-identical results on every run.")
    time_limit_minutes: float | None = knob(
        None,
        "Wall-clock limit in minutes, counted from the start; the run stops early enough to finish its save. null: no limit.",
        above=0,
    )


@dataclass(frozen=True)
class ModelConfig:
    """Decoder architecture. Symbols in the code: D = d_model, H = n_heads, K = n_kv_heads, C = head width, F = d_ff,
    V = vocab_size.
    """

    vocab_size: int = knob(32_000, "Vocabulary size (V), at least the tokenizer's: rows of the embedding.", minimum=2)
    n_layers: int = knob(12, "Number of decoder blocks.", minimum=1)
    d_model: int = knob(768, "Model width (D).", minimum=1)
    n_heads: int = knob(12, "Number of query heads (H).", minimum=1)
    n_kv_heads: int = knob(12, "Number of key/value heads (K); fewer than n_heads: grouped-query attention.", minimum=1)
    head_dim: int = knob(0, "Head width (C); 0: d_model / n_heads.", minimum=0)
    d_ff: int = knob(2048, "Feed-forward width (F).", minimum=1)
    max_seq_len: int = knob(2048, "Longest supported sequence (context window), in tokens.", minimum=1)
    positions: str = knob(
        "rope",
        "Positional encoding: rotary (RoPE), learned absolute, or sinusoidal.",
        choices=("rope", "learned", "sinusoidal"),
    )
    rope_theta: float = knob(10_000.0, "Base of the RoPE frequencies.", above=0)
    rope_fraction: float = knob(1.0, "Fraction of each head's channels that RoPE rotates.", above=0, maximum=1)
    rope_scaling: str = knob(
        "none",
        "Method of scaling the RoPE frequencies to extend the context.",
        choices=("none", "linear", "llama3", "yarn"),
    )
    rope_factor: float = knob(1.0, "Factor of the context extension; requires rope_scaling.", minimum=1)
    rope_original_seq_len: int = knob(
        0, "Context length before the extension, in tokens; required by rope_scaling llama3 and yarn.", minimum=0
    )
    rope_low_freq_factor: float = knob(
        1.0, "llama3: wavelengths above rope_original_seq_len / this are scaled by the full factor.", above=0
    )
    rope_high_freq_factor: float = knob(
        4.0, "llama3: wavelengths below rope_original_seq_len / this are not scaled.", above=0
    )
    rope_beta_fast: float = knob(
        32.0, "yarn: channels with more rotations than this over rope_original_seq_len are not scaled.", above=0
    )
    rope_beta_slow: float = knob(
        1.0,
        "yarn: channels with fewer rotations than this over rope_original_seq_len are scaled by the full factor.",
        above=0,
    )
    norm: str = knob("rmsnorm", "Normalization of each sub-layer.", choices=("rmsnorm", "layernorm"))
    norm_eps: float = knob(1e-5, "Epsilon added to the variance in every normalization.", above=0)
    norm_bias: bool = knob(False, "Bias in the normalizations; requires norm=layernorm.")
    norm_position: str = knob(
        "pre",
        "Placement: normalize each sub-layer's input (pre), or its output before the residual addition (post).",
        choices=("pre", "post"),
    )
    qk_norm: str = knob(
        "none",
        "Normalization of queries and keys: of each head (head), or over all heads together (full).",
        choices=("none", "head", "full"),
    )
    attention_bias: str = knob(
        "none",
        "Biases in attention: on queries, keys and values (qkv), or also on the output (all).",
        choices=("none", "qkv", "all"),
    )
    ffn: str = knob("swiglu", "Feed-forward network.", choices=("swiglu", "gelu", "gelu_tanh", "relu"))
    ffn_bias: bool = knob(False, "Biases in the feed-forward network.")
    tie_embeddings: bool = knob(False, "Use the input embedding as the output head.")
    attention: str = knob(
        "sdpa",
        "Attention implementation: fused (sdpa), or the plain formula (reference).",
        choices=("sdpa", "reference"),
    )
    init_std: float = knob(
        0.02, "Standard deviation of the initial weights; residual output projections shrink with depth.", above=0
    )

    @property
    def head_width(self) -> int:
        """Width of one head (C)."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def rotary_width(self) -> int:
        """Channels of a head that RoPE rotates; rounded down, like transformers."""
        return int(self.head_width * self.rope_fraction)


@dataclass(frozen=True)
class SourceConfig:
    """One tokenized corpus."""

    path: str = knob(
        "",
        "Folder with manifest.json and shards, written by `pretrain tokenizer encode`: a path, or an object store address such "
        "as s3://BUCKET/FOLDER.",
    )
    weight: float = knob(
        1.0,
        "Sampling weight relative to the other training sources; 0: not read until a stage sets a weight.",
        minimum=0,
    )
    max_epochs: float | None = knob(
        None, "Maximum passes over the source; a plan that needs more is refused at start-up. null: no limit.", above=0
    )


@dataclass(frozen=True)
class StageConfig:
    """New source weights from a step on: curriculum or annealing. The change neither repeats nor skips data."""

    start_step: int = knob(1, "Optimizer steps completed before these weights take effect.", minimum=1)
    weights: dict[str, float] = knob({}, "Weight of each source; a source not named here is not read in this stage.")


@dataclass(frozen=True)
class StoreConfig:
    """Reading from object stores: range requests of complete blocks, each checksummed on arrival."""

    connections: int = knob(16, "Concurrent requests per process.", minimum=1)
    attempts: int = knob(6, "Attempts per request before the run fails.", minimum=1)
    timeout_s: float = knob(30.0, "Timeout of one attempt, in seconds.", above=0)
    memory_mib: int = knob(512, "Memory for prefetched and in-use blocks per process, in MiB.", minimum=1)
    cache_dir: str | None = knob(
        None,
        "Folder on a local disk that caches blocks for later epochs and runs; processes may share it. null: no cache.",
    )
    cache_gib: float = knob(100.0, "Maximum size of cache_dir, in GiB; evicts the least recently used shards.", above=0)


@dataclass(frozen=True)
class DataConfig:
    """Training and held-out data, and the order of reading."""

    train: dict[str, SourceConfig] = knob({}, "Training sources by name, e.g. `data.train.web.path=DIR`.")
    valid: dict[str, SourceConfig] = knob({}, "Held-out sources by name.")
    stages: dict[str, StageConfig] = knob(
        {}, "Changes of the source weights by name, e.g. `data.stages.anneal.start_step=9000`."
    )
    tokenizer: str | None = knob(
        None,
        "Path of tokenizer.model or tokenizer.json; its SHA-256 must match the one recorded in the shards.",
    )
    seq_len: int = knob(2048, "Sequence length (T), in tokens; must divide the shards' block size.", minimum=1)
    document_mask: bool = knob(
        False, "Mask attention across document boundaries, and restart positions at each document."
    )
    lanes: int = knob(
        256,
        "Parallel read streams of the data order. Defines the order: cannot change within a run.",
        minimum=1,
        maximum=4092,
    )
    span: int = knob(
        64,
        "Consecutive sequences that a lane reads before it jumps. Defines the order: cannot change within a run.",
        minimum=1,
    )
    seed: int = knob(0, "Seed of the data order.", minimum=0)
    prefetch_batches: int = knob(
        4, "Batches prefetched by the reader thread; 0: read in the training thread.", minimum=0
    )
    audit: bool = knob(
        False,
        "Write a digest of each step's sequences to RUN/audit.jsonl; independent of the number of ranks.",
    )
    store: StoreConfig = field(default_factory=StoreConfig)


@dataclass(frozen=True)
class BatchConfig:
    """Global batch = micro batch × data-parallel processes × gradient accumulation steps."""

    global_batch_size: int = knob(32, "Sequences per optimizer step, over all processes.", minimum=1)
    micro_batch_size: int = knob(8, "Sequences per process and forward pass.", minimum=1)
    ramp_start_size: int = knob(0, "Batch size ramp: global batch size at the first step; 0: no ramp.", minimum=0)
    ramp_increment: int = knob(0, "Batch size ramp: sequences added at each increase.", minimum=0)
    ramp_steps: int = knob(
        0, "Batch size ramp: steps until global_batch_size is reached; all sizes last equally long.", minimum=0
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; weight decay applies to matrices only."""

    lr: float = knob(3e-4, "Peak learning rate.", above=0)
    beta1: float = knob(0.9, "Decay rate of the first moment.", minimum=0, below=1)
    beta2: float = knob(0.95, "Decay rate of the second moment.", minimum=0, below=1)
    eps: float = knob(1e-8, "Epsilon added to the square root of the second moment.", above=0)
    weight_decay: float = knob(0.1, "Decoupled weight decay of matrices.", minimum=0)
    clip_grad_norm: float = knob(1.0, "Maximum global gradient norm; 0: no clipping.", minimum=0)


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate schedule, a pure function of the step."""

    kind: str = knob("cosine", "Shape after the warmup.", choices=("cosine", "linear", "wsd", "constant"))
    total_steps: int = knob(1000, "Optimizer steps of the complete run.", minimum=1)
    warmup_steps: int = knob(100, "Steps of linear warmup from 0.", minimum=0)
    decay_steps: int = knob(0, "wsd: steps of the final linear decay; 0: a tenth of total_steps.", minimum=0)
    final_lr_fraction: float = knob(
        0.1, "Learning rate at the last step, as a fraction of the peak.", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class LossConfig:
    """Cross-entropy, averaged over the actual number of targets in the global batch."""

    z_loss_weight: float = knob(
        0.0, "Weight of the z-loss mean(logsumexp(logits)^2), which keeps logits small; 0: off.", minimum=0
    )
    chunk_tokens: int = knob(
        2048, "Tokens per chunk of the loss, whose fp32 logits exist at once; smaller saves memory.", minimum=1
    )


@dataclass(frozen=True)
class EngineConfig:
    """DeepSpeed, precision and device."""

    zero_stage: int = knob(
        2,
        "ZeRO stage. Partitioned over the processes: 0 nothing, 1 optimizer states, 2 + gradients, 3 + parameters.",
        minimum=0,
        maximum=3,
    )
    precision: str = knob(
        "bf16", "Precision of forward and backward; master weights are fp32.", choices=("fp32", "bf16", "fp16")
    )
    activation_checkpoint_every: int = knob(
        0, "Activation checkpointing: recompute every n-th block in backward; 0: none, 1: all.", minimum=0
    )
    compile: bool = knob(False, "Apply torch.compile to each block; needs a C++ compiler on CPU.")
    device: str = knob("auto", "Device; auto: CUDA if available, else CPU.", choices=("auto", "cpu", "cuda"))
    threads_per_process: int = knob(0, "CPU threads per process; 0: an equal share of the cores.", minimum=0)
    deepspeed: dict[str, Any] = knob({}, "Native DeepSpeed options, passed through; top-level names are checked.")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, which checkpoints to keep, whether to resume."""

    every_steps: int = knob(500, "Save every N steps; 0: only at the end and on a stop request.", minimum=0)
    keep_last: int = knob(3, "Keep the N newest checkpoints.", minimum=1)
    keep_every_steps: int = knob(0, "Keep checkpoints at multiples of N steps forever; 0: none.", minimum=0)
    keep_best: int = knob(0, "Also keep the N checkpoints with the lowest validation loss.", minimum=0)
    weights_every_steps: int = knob(
        0,
        "Save the weights alone to RUN/weights every N steps, for evaluation: a third of a checkpoint's size. 0: never.",
        minimum=0,
    )
    asynchronous: bool = knob(True, "Write in the background; training waits only for the copy to host memory.")
    upload: str | None = knob(
        None,
        "Object store address to which each checkpoint is copied in the background, e.g. s3://BUCKET/RUN. null: no upload.",
    )
    resume: str = knob(
        "auto",
        "auto: resume from the newest checkpoint, or start from scratch without one; must: fail without one; never: refuse a "
        "run folder that has one.",
        choices=("auto", "must", "never"),
    )


@dataclass(frozen=True)
class GuardConfig:
    """Reaction to failures: non-finite numbers, loss spikes, hangs, stragglers, diverged replicas."""

    on_nonfinite: str = knob(
        "stop",
        "Reaction to a non-finite loss or gradient: stop with an error, or rollback to the newest checkpoint and skip the "
        "offending batches.",
        choices=("stop", "rollback"),
    )
    on_spike: str = knob(
        "ignore", "Reaction to a loss spike: ignore, stop or rollback.", choices=("ignore", "stop", "rollback")
    )
    spike_deviations: float = knob(
        10.0, "Spike threshold, in robust standard deviations above the median loss of the window.", above=0
    )
    spike_window_steps: int = knob(
        128, "Number of recent losses in the spike window; detection starts when it is half full.", minimum=8
    )
    jump_steps: int = knob(
        1, "Batches skipped after a rollback: the offending one and those just before it.", minimum=1
    )
    max_rollbacks: int = knob(5, "Maximum rollbacks of a run; the run then stops with an error.", minimum=0)
    watchdog_s: float = knob(
        1800.0,
        "Seconds without progress until a process reports which rank hangs and where, dumps all stacks and exits; 0: never.",
        minimum=0,
    )
    straggler_every_steps: int = knob(
        100, "Check for a straggler every N steps and report the slowest process if notable; 0: never.", minimum=0
    )
    replicas_every_steps: int = knob(
        0, "Compare the weights of all processes every N steps (ZeRO stages 0 to 2); 0: never.", minimum=0
    )


@dataclass(frozen=True)
class EvalConfig:
    """Held-out loss and generated samples."""

    every_steps: int = knob(200, "Evaluate every N steps, and at the start and the end; 0: never.", minimum=0)
    max_sequences: int = knob(
        512, "Held-out sequences per evaluation, over all processes; the same ones each time.", minimum=1
    )
    prompts: tuple[str, ...] = knob(
        (), "Prompts to continue greedily at each evaluation; output in RUN/samples.jsonl and TensorBoard."
    )
    sample_tokens: int = knob(64, "Tokens to generate for each prompt.", minimum=1)


@dataclass(frozen=True)
class LogConfig:
    """Console and TensorBoard."""

    every_steps: int = knob(10, "Print a line every N steps when the console is not a terminal.", minimum=1)
    tensorboard: bool = knob(True, "Write scalars to RUN/tensorboard.")


@dataclass(frozen=True)
class Config:
    """The complete configuration of a run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
