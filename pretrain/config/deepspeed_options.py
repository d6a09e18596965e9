"""Options of `engine.deepspeed`: which pass through to DeepSpeed, which follow from other keys, which cannot work here.

DeepSpeed ignores a misspelt name, and rejects others only once all processes run, so they are checked here.
tests/unit/pretrain/config/test_deepspeed_options.py keeps the lists current.
"""

import difflib
from collections.abc import Iterator
from typing import Any

from pretrain.config.schema import Config

# Top-level options of DeepSpeed 0.19, without removed ones.
PASSED_OPTIONS = frozenset(
    """
    bf16 comms_logger communication_data_type data_types disable_allgather disable_python_gc dump_state flops_profiler fp16
    gradient_predivide_factor log_level memory_breakdown prescale_gradients steps_per_print timers torch_autocast
    vocabulary_size wall_clock_breakdown zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
    """.split()
)
# Derived from other sections of the configuration; a second value could only contradict them.
DERIVED_OPTIONS = {
    "train_batch_size": "batch.global_batch_size",
    "train_micro_batch_size_per_gpu": "batch.micro_batch_size",
    "gradient_accumulation_steps": "batch.global_batch_size",
    "gradient_clipping": "optimizer.clip_grad_norm",
    "gradient_allreduce_op": "the loss, which averages over the targets of all ranks",
    "managed_gradient_accumulation": "batch.micro_batch_size",
    "optimizer": "the section optimizer",
    "scheduler": "the section schedule",
    "bf16.enabled": "engine.precision",
    "fp16.enabled": "engine.precision",
    "zero_optimization.stage": "engine.zero_stage",
}
_MONITOR = "DeepSpeed would see the learning rate only; RUN/metrics.jsonl and log.tensorboard have every value"
_PARALLEL = "processes share the work by data parallelism and ZeRO only; see engine.zero_stage"
_OWN_ADAM = "it requires an optimizer of DeepSpeed; here torch's AdamW updates"
_OLD_OFFLOAD = "DeepSpeed replaced it: zero_optimization.offload_optimizer.device=cpu"
# Refused, with the reason: DeepSpeed would ignore them in this engine, or fail once all processes run.
REFUSED_OPTIONS = {
    "activation_checkpointing": "see engine.activation_checkpoint_every",
    "aio": "it is for NVMe offload, whose states a checkpoint cannot read",
    "autotuning": "it belongs to DeepSpeed's launcher; `pretrain launch slurm --dry-run` prints the memory of each stage",
    "checkpoint": "checkpoints are written by the section checkpoint",
    "comet": _MONITOR,
    "compile": "see engine.compile",
    "csv_monitor": _MONITOR,
    "data_efficiency": "the sections data and batch determine the order of samples",
    "data_parallel_size": _PARALLEL,
    "dataloader_drop_last": "DeepSpeed loads no data here; see the section data",
    "datastates_ckpt": "checkpoints are written by the section checkpoint",
    "expert_parallel": _PARALLEL,
    "hybrid_engine": "it is for reinforcement learning; `pretrain generate` generates",
    "pipeline": _PARALLEL,
    "seq_parallel_communication_data_type": _PARALLEL,
    "sequence_parallel_size": _PARALLEL,
    "tensor_parallel": _PARALLEL,
    "tensorboard": _MONITOR,
    "use_data_before_expert_parallelism": _PARALLEL,
    "wandb": _MONITOR,
    "weight_quantization": "it is for inference; `pretrain export --format gguf --dtype q8_0` quantizes",
    "zero_optimization.cpu_offload": _OLD_OFFLOAD,
    "zero_optimization.cpu_offload_param": _OLD_OFFLOAD.replace("optimizer", "param"),
    "zero_optimization.cpu_offload_use_pin_memory": _OLD_OFFLOAD,
    "zero_optimization.zenflow": _OWN_ADAM,
}


def deepspeed_problems(config: Config) -> list[str]:
    """All options of `engine.deepspeed` that are unknown, derived, or cannot work with this configuration."""
    problems = []
    accumulation = config.engine.deepspeed.get("data_types")
    if config.engine.zero_stage == 1 and config.engine.precision == "bf16" and accumulation:
        problems.append(
            f"engine.deepspeed.data_types={accumulation!r} at stage 1 in bf16 selects an optimizer of DeepSpeed that cannot be "
            f"saved here\n    hint: engine.zero_stage=2"
        )
    for name, value in config.engine.deepspeed.items():
        if name in ("zero_optimization", "bf16", "fp16") and not isinstance(value, dict):
            problems.append(
                f"engine.deepspeed.{name}={value!r} would replace a derived section\n"
                f"    hint: set single options in it, e.g. engine.deepspeed.zero_optimization.overlap_comm=true"
            )
            continue
        problems += _option_problems(name, value)
    return problems + list(_offload_problems(config))


def _option_problems(name: Any, value: Any) -> Iterator[str]:
    inner = [f"{name}.{key}" for key in value] if isinstance(value, dict) else []
    known = (name, *inner)
    owner = next((DERIVED_OPTIONS[key] for key in known if key in DERIVED_OPTIONS), None)
    refused = [key for key in known if key in REFUSED_OPTIONS]
    if owner is not None:
        yield f"engine.deepspeed.{name} is derived from {owner}\n    hint: change it there"
    elif refused and not (isinstance(value, dict) and value.get("enabled") is False):
        for key in refused:
            yield f"engine.deepspeed.{key} cannot work here\n    hint: remove it; {REFUSED_OPTIONS[key]}"
    elif name not in PASSED_OPTIONS and name not in REFUSED_OPTIONS:
        near = difflib.get_close_matches(str(name), PASSED_OPTIONS, n=1)
        hint = f"\n    hint: did you mean {near[0]}?" if near else ""
        yield f"engine.deepspeed.{name} is not an option of DeepSpeed, which would ignore it silently{hint}"


def _offload_problems(config: Config) -> Iterator[str]:
    """Offload that DeepSpeed would ignore at this stage, or fail at once all processes run."""
    zero = config.engine.deepspeed.get("zero_optimization")
    for name, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        section = zero.get(name) if isinstance(zero, dict) else None
        key = f"engine.deepspeed.zero_optimization.{name}"
        if section is None:
            continue
        if not isinstance(section, dict):
            yield f"{key}={section!r} is not a section\n    hint: {key}.device=cpu"
            continue
        device = section.get("device", "none")
        if device == "nvme":
            yield f"{key}.device=nvme: a checkpoint cannot read states on NVMe\n    hint: {key}.device=cpu"
        elif device not in ("none", "cpu"):
            yield f"{key}.device={device!r} is neither none nor cpu\n    hint: {key}.device=cpu"
        elif device == "cpu" and config.engine.zero_stage < lowest:
            yield (
                f"{key}.device=cpu with engine.zero_stage={config.engine.zero_stage}: DeepSpeed would ignore it\n"
                f"    hint: engine.zero_stage={max(2, lowest)}"
            )
        elif device == "cpu" and name == "offload_optimizer":
            for option, ours in (("ratio", 1.0), ("super_offload", False)):
                if section.get(option, ours) != ours:
                    yield f"{key}.{option}={section[option]!r} cannot work here\n    hint: remove it; {_OWN_ADAM}"
            if config.engine.deepspeed.get("zero_force_ds_cpu_optimizer"):
                yield (
                    "engine.deepspeed.zero_force_ds_cpu_optimizer=true with offload_optimizer: torch's AdamW updates"
                    "\n    hint: engine.deepspeed.zero_force_ds_cpu_optimizer=false"
                )
