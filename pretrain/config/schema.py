"""Every knob of a run: its type, default, unit and range, declared once.

The checks in `check.py`, the table in docs/reference/config.md and `pretrain config show` are all made from these
declarations. Precedence: these defaults < the YAML file (after what it `extends:`) < `key=value` on the command line.
"""

from dataclasses import dataclass, field
from typing import Any

# Of the model section: how attention is computed, and how weights are drawn. The weights are right with any of them.
FREE = ("attention", "init_std")


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
    """A dataclass field with what the checks and the reference need to know of it."""
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
    """Where a run lives and what makes it reproducible."""

    dir: str = knob("runs/default", "Run folder: config, metrics, TensorBoard, checkpoints, status and logs.")
    init_from: str | None = knob(
        None,
        "Weights to start with in place of drawn ones: a run, a checkpoint folder, or a Hugging Face directory. Step 0, a "
        "fresh optimizer; not read again once the run has a checkpoint of its own.",
    )
    seed: int = knob(1234, "Seed of the weights' initialization and of each rank's generators.", minimum=0)
    deterministic: bool = knob(True, "Use only kernels that give the same bits on every run.")
    time_limit_minutes: float | None = knob(
        None, "Save and end so long after the start, minus the time that a save takes; null has no limit.", above=0
    )


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder. Symbols in the code: D = d_model, H = n_heads, K = n_kv_heads, C = width of a head, F = d_ff,
    V = vocab_size.
    """

    vocab_size: int = knob(32_000, "Rows of the embedding (V); at least the tokenizer's vocabulary.", minimum=2)
    n_layers: int = knob(12, "Decoder blocks.", minimum=1)
    d_model: int = knob(768, "Model width (D).", minimum=1)
    n_heads: int = knob(12, "Query heads (H).", minimum=1)
    n_kv_heads: int = knob(12, "Key and value heads (K); fewer than n_heads is grouped-query attention.", minimum=1)
    head_dim: int = knob(0, "Width of one head (C); 0 is d_model / n_heads.", minimum=0)
    d_ff: int = knob(2048, "Width of the feed-forward network (F).", minimum=1)
    max_seq_len: int = knob(2048, "Longest sequence that the model is made for, in tokens.", minimum=1)
    positions: str = knob("rope", "Positional embedding.", choices=("rope", "learned", "sinusoidal"))
    rope_theta: float = knob(10_000.0, "Base of the rotary frequencies.", above=0)
    rope_fraction: float = knob(1.0, "Part of each head's channels that is rotated.", above=0, maximum=1)
    rope_scaling: str = knob(
        "none",
        "How rotary frequencies are slowed for contexts longer than rope_original_seq_len.",
        choices=("none", "linear", "llama3", "yarn"),
    )
    rope_factor: float = knob(1.0, "With rope_scaling: how many times longer the context becomes.", minimum=1)
    rope_original_seq_len: int = knob(
        0, "With rope_scaling llama3 and yarn: the context, in tokens, of the training before.", minimum=0
    )
    rope_low_freq_factor: float = knob(
        1.0, "llama3: waves longer than rope_original_seq_len over this are slowed fully.", above=0
    )
    rope_high_freq_factor: float = knob(
        4.0, "llama3: waves shorter than rope_original_seq_len over this stay as they are.", above=0
    )
    rope_beta_fast: float = knob(32.0, "yarn: channels that turn more often than this over the context stay.", above=0)
    rope_beta_slow: float = knob(1.0, "yarn: channels that turn less often than this are slowed fully.", above=0)
    norm: str = knob("rmsnorm", "Normalization of each sub-layer.", choices=("rmsnorm", "layernorm"))
    norm_eps: float = knob(1e-5, "Added to the variance inside each normalization.", above=0)
    norm_bias: bool = knob(False, "layernorm: a bias besides the weight.")
    norm_position: str = knob(
        "pre", "What is normalized: a sub-layer's input, or its output before it is added.", choices=("pre", "post")
    )
    qk_norm: str = knob(
        "none",
        "Normalize queries and keys: each head by itself, or all heads together.",
        choices=("none", "head", "full"),
    )
    attention_bias: str = knob(
        "none", "Biases of queries, keys and values, or of the output too.", choices=("none", "qkv", "all")
    )
    ffn: str = knob("swiglu", "Feed-forward network.", choices=("swiglu", "gelu", "gelu_tanh", "relu"))
    ffn_bias: bool = knob(False, "Biases of the feed-forward network.")
    tie_embeddings: bool = knob(False, "Use the input embedding as the output head.")
    attention: str = knob("sdpa", "Attention path; `reference` is the formula itself.", choices=("sdpa", "reference"))
    init_std: float = knob(
        0.02, "Standard deviation of the initial weights; residual outputs get less by depth.", above=0
    )

    @property
    def head_width(self) -> int:
        """Width of one head (C)."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def rotary_width(self) -> int:
        """Channels of a head that rotary positions turn; rounded down, as transformers does."""
        return int(self.head_width * self.rope_fraction)


@dataclass(frozen=True)
class SourceConfig:
    """One tokenized corpus."""

    path: str = knob(
        "",
        "Folder with manifest.json and shards, as `pretrain tokenizer encode` writes it; a path, or an address in an object "
        "store such as s3://BUCKET/FOLDER.",
    )
    weight: float = knob(
        1.0, "Share of the training samples, relative to the other sources; 0 until a stage gives it one.", minimum=0
    )
    max_epochs: float | None = knob(
        None, "How often the run may read the source; a plan that needs more is refused before it starts.", above=0
    )


@dataclass(frozen=True)
class StageConfig:
    """Other weights from a step on: a curriculum, or annealing. Nothing is repeated or skipped by the change."""

    start_step: int = knob(1, "Optimizer steps that are taken before these weights hold.", minimum=1)
    weights: dict[str, float] = knob({}, "Weight by source; one that is not named is not read in this stage.")


@dataclass(frozen=True)
class StoreConfig:
    """How sources in object stores are read: whole blocks by range requests, each checked when it arrives."""

    connections: int = knob(16, "Requests in flight, for each process.", minimum=1)
    attempts: int = knob(6, "Tries of a request before the run stops with an error.", minimum=1)
    timeout_s: float = knob(30.0, "Seconds that one try may take.", above=0)
    memory_mib: int = knob(
        512, "Memory for blocks that are read ahead or still in use, for each process; MiB.", minimum=1
    )
    cache_dir: str | None = knob(
        None, "Folder on a local disk that keeps blocks for later epochs and runs; processes may share it."
    )
    cache_gib: float = knob(100.0, "Size of cache_dir; the shards used longest ago make room. GiB.", above=0)


@dataclass(frozen=True)
class DataConfig:
    """What is read, and in which order."""

    train: dict[str, SourceConfig] = knob({}, "Training sources by name, e.g. `data.train.web.path=DIR`.")
    valid: dict[str, SourceConfig] = knob({}, "Held-out sources by name.")
    stages: dict[str, StageConfig] = knob({}, "Changes of the weights, e.g. `data.stages.anneal.start_step=9000`.")
    tokenizer: str | None = knob(
        None,
        "tokenizer.model or tokenizer.json; its sha256 must be the one that the shards were made with.",
    )
    seq_len: int = knob(2048, "Tokens a sequence (T); must divide the block of the shards.", minimum=1)
    document_mask: bool = knob(False, "Attend within documents only, and count positions from each document's start.")
    lanes: int = knob(
        256,
        "Parallel read streams of the order. Part of the order: cannot change within a run.",
        minimum=1,
        maximum=4092,
    )
    span: int = knob(64, "Consecutive sequences that a lane reads before it jumps. Part of the order.", minimum=1)
    seed: int = knob(0, "Seed of the order.", minimum=0)
    prefetch_batches: int = knob(
        4, "Batches that the reading thread keeps ready; 0 reads in the training thread.", minimum=0
    )
    audit: bool = knob(
        False,
        "Write to RUN/audit.jsonl a digest of the sequences that each step consumed; the same for any number of ranks.",
    )
    store: StoreConfig = field(default_factory=StoreConfig)


@dataclass(frozen=True)
class BatchConfig:
    """Global batch = micro batch × data-parallel processes × accumulation steps."""

    global_batch_size: int = knob(32, "Sequences an optimizer step, over all processes.", minimum=1)
    micro_batch_size: int = knob(8, "Sequences a process and forward pass.", minimum=1)
    ramp_start_size: int = knob(0, "Global batch of the first step, where it grows; 0 does not ramp.", minimum=0)
    ramp_increment: int = knob(0, "Sequences by which the batch grows each time.", minimum=0)
    ramp_steps: int = knob(
        0, "Steps after which the batch has its full size; each size is held equally long.", minimum=0
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; weight decay applies to matrices only."""

    lr: float = knob(3e-4, "Peak learning rate.", above=0)
    beta1: float = knob(0.9, "Decay of the first moment.", minimum=0, below=1)
    beta2: float = knob(0.95, "Decay of the second moment.", minimum=0, below=1)
    eps: float = knob(1e-8, "Added to the root of the second moment.", above=0)
    weight_decay: float = knob(0.1, "Decoupled weight decay of matrices.", minimum=0)
    clip_grad_norm: float = knob(1.0, "Largest norm of the global gradient; 0 does not clip.", minimum=0)


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate as a pure function of the step."""

    kind: str = knob("cosine", "Shape after the warmup.", choices=("cosine", "linear", "wsd", "constant"))
    total_steps: int = knob(1000, "Optimizer steps of the whole run.", minimum=1)
    warmup_steps: int = knob(100, "Steps of linear warmup from 0.", minimum=0)
    decay_steps: int = knob(0, "wsd only: steps of the final linear decay; 0 means a tenth of total_steps.", minimum=0)
    final_lr_fraction: float = knob(
        0.1, "Learning rate of the last step, as a fraction of the peak.", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class LossConfig:
    """Cross-entropy over the true number of targets of the global batch."""

    z_loss_weight: float = knob(0.0, "Weight of mean(logsumexp(logits)^2), which keeps logits small.", minimum=0)
    chunk_tokens: int = knob(2048, "Tokens whose logits exist at once in fp32.", minimum=1)


@dataclass(frozen=True)
class EngineConfig:
    """How DeepSpeed runs the model."""

    zero_stage: int = knob(
        2, "ZeRO stage: 0 none, 1 optimizer states, 2 + gradients, 3 + parameters.", minimum=0, maximum=3
    )
    precision: str = knob(
        "bf16", "Forward and backward precision; master weights are fp32.", choices=("fp32", "bf16", "fp16")
    )
    activation_checkpoint_every: int = knob(0, "Recompute every n-th block in backward: 0 none, 1 all.", minimum=0)
    compile: bool = knob(False, "torch.compile each block; needs a C++ compiler on CPU.")
    device: str = knob("auto", "Where to run; auto takes CUDA when there is one.", choices=("auto", "cpu", "cuda"))
    threads_per_process: int = knob(0, "CPU threads of each process; 0 shares the cores evenly.", minimum=0)
    deepspeed: dict[str, Any] = knob({}, "Native DeepSpeed options, passed through; top-level names are checked.")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, what to keep, and whether to resume."""

    every_steps: int = knob(500, "Save every so many steps; 0 only at the end and when stopped.", minimum=0)
    keep_last: int = knob(3, "Newest checkpoints that are kept.", minimum=1)
    keep_every_steps: int = knob(0, "Checkpoints at multiples of so many steps are kept for good; 0 none.", minimum=0)
    keep_best: int = knob(0, "So many checkpoints with the lowest validation loss are kept too.", minimum=0)
    weights_every_steps: int = knob(
        0,
        "Save the weights alone to RUN/weights every so many steps: a third of the size, for evaluation; 0 never.",
        minimum=0,
    )
    asynchronous: bool = knob(
        True, "Write in the background while training goes on; it waits for a copy to the host only."
    )
    upload: str | None = knob(
        None, "Address in an object store to which each checkpoint is copied in the background, e.g. s3://BUCKET/RUN."
    )
    resume: str = knob(
        "auto",
        "auto: from the newest checkpoint, or from scratch where there is none; must: fail without one; never: refuse a "
        "run folder that holds one.",
        choices=("auto", "must", "never"),
    )


@dataclass(frozen=True)
class GuardConfig:
    """What happens when training goes wrong: numbers that are not finite, spikes, processes that hang."""

    on_nonfinite: str = knob(
        "stop",
        "A loss or gradient that is not finite: stop with an error, or rollback to the newest checkpoint and jump over the "
        "batches at fault.",
        choices=("stop", "rollback"),
    )
    on_spike: str = knob("ignore", "The same for a loss spike.", choices=("ignore", "stop", "rollback"))
    spike_deviations: float = knob(
        10.0, "A loss so many robust standard deviations above the median of the window is a spike.", above=0
    )
    spike_window_steps: int = knob(
        128, "Losses that a loss is compared with; fewer than half of them judge nothing.", minimum=8
    )
    jump_steps: int = knob(
        1, "Batches that are jumped over after a rollback, the one at fault the last of them.", minimum=1
    )
    max_rollbacks: int = knob(5, "Rollbacks of a run before it stops with an error.", minimum=0)
    watchdog_s: float = knob(
        1800.0,
        "Seconds without progress after which a process names who hangs where, dumps all stacks and ends; 0 never.",
        minimum=0,
    )
    straggler_every_steps: int = knob(
        100, "Report the slowest process every so many steps, where it is slower than the others; 0 never.", minimum=0
    )
    replicas_every_steps: int = knob(
        0, "Compare the weights of all processes every so many steps (ZeRO stages 0 to 2); 0 never.", minimum=0
    )


@dataclass(frozen=True)
class EvalConfig:
    """Loss on the held-out sources, and samples of what the model writes."""

    every_steps: int = knob(200, "Evaluate every so many steps, and at the start and the end; 0 never.", minimum=0)
    max_sequences: int = knob(
        512, "Held-out sequences an evaluation, over all processes; the same ones each time.", minimum=1
    )
    prompts: tuple[str, ...] = knob(
        (), "Texts that the model continues at each evaluation, greedily, to RUN/samples.jsonl and TensorBoard."
    )
    sample_tokens: int = knob(64, "Tokens behind each of eval.prompts.", minimum=1)


@dataclass(frozen=True)
class LogConfig:
    """What is written while training."""

    every_steps: int = knob(10, "Print a line every so many steps when the console is not a terminal.", minimum=1)
    tensorboard: bool = knob(True, "Write scalars to RUN/tensorboard.")


@dataclass(frozen=True)
class Config:
    """A whole run."""

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
