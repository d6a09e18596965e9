"""Rules for `engine.deepspeed`, the native options that are passed through: known by name, and usable here."""

import difflib
from typing import Any

from pretrain.config.schema import Config

# Top-level options of DeepSpeed 0.19, without removed ones, which it rejects only once all processes run. DeepSpeed ignores
# a misspelt name, so names are checked here; tests/unit/pretrain/config/test_check_deepspeed.py keeps the list current.
DEEPSPEED_OPTIONS = frozenset(
    """
    aio bf16 comms_logger communication_data_type data_types disable_allgather disable_python_gc dump_state flops_profiler
    fp16 gradient_predivide_factor log_level memory_breakdown prescale_gradients
    seq_parallel_communication_data_type steps_per_print timers use_data_before_expert_parallelism vocabulary_size
    wall_clock_breakdown zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
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
_METRICS = (
    "the engine sees neither losses nor steps as this project counts them",
    "read RUN/metrics.jsonl, or log.tensorboard",
)
_LAYOUT = "each process reads sequences of its own, and checkpoints know ZeRO's layouts only", "engine.zero_stage=3"
_SAVED = "checkpoints are written by this project", "the section checkpoint"
# Known to DeepSpeed and unusable here: (reason, hint).
UNUSABLE_OPTIONS = {
    "wandb": _METRICS,
    "comet": _METRICS,
    "csv_monitor": _METRICS,
    "tensorboard": _METRICS,
    "tensor_parallel": _LAYOUT,
    "pipeline": _LAYOUT,
    "expert_parallel": _LAYOUT,
    "sequence_parallel_size": _LAYOUT,
    "data_parallel_size": _LAYOUT,
    "checkpoint": _SAVED,
    "datastates_ckpt": _SAVED,
    "activation_checkpointing": ("the model recomputes its own blocks", "engine.activation_checkpoint_every=1"),
    "compile": ("blocks are compiled by this project", "engine.compile=true"),
    "torch_autocast": ("precision is one for the run", "engine.precision=bf16"),
    "weight_quantization": ("checkpoints keep fp32 masters of the trained weights", "quantize an export"),
    "data_efficiency": ("the data order is this project's", "data.stages"),
    "dataloader_drop_last": ("batches are this project's, and always full", "leave it out"),
    "autotuning": ("it needs DeepSpeed's own launcher", "pretrain launch slurm --dry-run shows memory by ZeRO stage"),
    "hybrid_engine": ("it serves reinforcement learning with DeepSpeed-Chat", "leave it out"),
}
# Each kind of offload, with the lowest ZeRO stage at which DeepSpeed heeds it.
OFFLOADS = {"offload_optimizer": 1, "offload_param": 3}


def find_deepspeed_conflicts(config: Config) -> list[str]:
    """All broken rules of `engine.deepspeed`."""
    problems = [*_accumulation(config), *_offload(config)]
    for name, value in config.engine.deepspeed.items():
        if name in ("zero_optimization", "bf16", "fp16") and not isinstance(value, dict):
            problems.append(
                f"engine.deepspeed.{name}={value!r} would replace a derived section\n"
                f"    hint: set single options in it, e.g. engine.deepspeed.zero_optimization.overlap_comm=true"
            )
            continue
        inner = [f"{name}.{key}" for key in value] if isinstance(value, dict) else []
        owner = next((DERIVED_OPTIONS[key] for key in (name, *inner) if key in DERIVED_OPTIONS), None)
        if owner is not None:
            problems.append(f"engine.deepspeed.{name} is derived from {owner}\n    hint: change it there")
        elif name in UNUSABLE_OPTIONS:
            reason, hint = UNUSABLE_OPTIONS[name]
            problems.append(f"engine.deepspeed.{name} cannot be used: {reason}\n    hint: {hint}")
        elif name not in DEEPSPEED_OPTIONS:
            problems.append(
                f"engine.deepspeed.{name} is not an option of DeepSpeed, which would ignore it silently{_nearest(name)}"
            )
    return problems


def _nearest(name: Any) -> str:
    near = difflib.get_close_matches(str(name), DEEPSPEED_OPTIONS, n=1)
    return f"\n    hint: did you mean {near[0]}?" if near else ""


def _accumulation(config: Config) -> list[str]:
    types = config.engine.deepspeed.get("data_types")
    if config.engine.zero_stage == 1 and config.engine.precision == "bf16" and types:
        return [
            f"engine.deepspeed.data_types={types!r} at stage 1 in bf16 selects an optimizer of DeepSpeed that cannot be "
            f"saved here\n    hint: engine.zero_stage=2"
        ]
    return []


def _offload(config: Config) -> list[str]:
    sections = config.engine.deepspeed.get("zero_optimization")
    problems = []
    for name, lowest in OFFLOADS.items():
        section = sections.get(name) if isinstance(sections, dict) else None
        device = section.get("device", "none") if isinstance(section, dict) else "none"
        key = f"engine.deepspeed.zero_optimization.{name}.device"
        if device not in ("none", "cpu"):
            problems.append(
                f"{key}={device}: only the memory of the host is tested; checkpoints do not read states on a disk\n"
                f"    hint: {key}=cpu"
            )
        elif device == "cpu" and config.engine.zero_stage < lowest:
            problems.append(
                f"{key}=cpu has no effect at engine.zero_stage={config.engine.zero_stage}\n    hint: engine.zero_stage={lowest}"
            )
    return problems
