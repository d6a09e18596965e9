"""Rules between values, beyond the ranges of single values. Without torch, so that a login node can run them."""

import difflib
import math
from pathlib import Path

from pretrain.config.deepspeed_options import deepspeed_problems
from pretrain.config.schema import Config, ModelConfig
from pretrain.errors import ConfigError


def check_config(config: Config) -> None:
    """Raise ConfigError with every broken rule."""
    problems = find_conflicts(config)
    if problems:
        raise ConfigError(problems)


def find_conflicts(config: Config, *, engine: bool = True) -> list[str]:
    """All broken rules between values; without `engine`, only those that a reader of finished weights depends on."""
    parts = (_model, _data, _batch, _schedule, _guard, _evaluation, *((_engine, deepspeed_problems) if engine else ()))
    return [problem for part in parts for problem in part(config)]


def find_wrong_paths(config: Config) -> list[str]:
    """Paths as people type them that would be read as something else. Not for saved files: some run was trained with them."""
    data = config.data
    sources = [
        (f"data.{part}", name, source) for part in ("train", "valid") for name, source in getattr(data, part).items()
    ]
    paths = {
        "run.dir": config.run.dir,
        "run.init_from": config.run.init_from,
        "data.tokenizer": data.tokenizer,
        **{f"{where}.{name}.path": source.path for where, name, source in sources},
    }
    problems = [
        f"{key}={path}: ~ stands for the home folder only in a shell\n    hint: {key}={Path(path).expanduser()}"
        for key, path in paths.items()
        if path is not None and path.split("/")[0] == "~"
    ]
    for where, name, source in sources:
        if not source.path:
            near = difflib.get_close_matches(name, [n for w, n, other in sources if w == where and other.path], n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"{where}.{name}.path=DIR"
            problems.append(f"{where}.{name} has no path\n    hint: {hint}")
    return problems


def check_world(config: Config, world_size: int) -> None:
    """Raise ConfigError if the global batch, or a size of its ramp, does not divide among `world_size` processes."""
    batch = config.batch
    size, micro = batch.global_batch_size, batch.micro_batch_size
    for key in ("ramp_start_size", "ramp_increment"):
        value = getattr(batch, key)
        if value % (micro * world_size):
            nearest = max(1, round(value / (micro * world_size))) * micro * world_size
            raise ConfigError(
                [
                    f"batch.{key}={value} is not a multiple of batch.micro_batch_size={micro} × {world_size} processes\n"
                    f"    hint: batch.{key}={nearest}, or fewer processes"
                ]
            )
    if size % (micro * world_size) == 0:
        return
    fitting = [n for n in range(1, size // micro + 1) if size % (micro * n) == 0]
    nearest = max(n * micro * world_size for n in (1, max(1, size // (micro * world_size))))
    raise ConfigError(
        [
            f"batch.global_batch_size={size} is not a multiple of batch.micro_batch_size={micro} × {world_size} processes\n"
            f"    hint: batch.global_batch_size={nearest}, or one of these process counts: {_listing(fitting)}"
        ]
    )


def _listing(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:12]))
    return f"{shown}, … {numbers[-1]}" if len(numbers) > 12 else shown


def _model(config: Config) -> list[str]:
    model, problems = config.model, []
    if not model.head_dim and model.d_model % model.n_heads:
        problems.append(
            f"model.d_model={model.d_model} is not a multiple of model.n_heads={model.n_heads}\n"
            f"    hint: model.d_model={max(1, round(model.d_model / (2 * model.n_heads))) * 2 * model.n_heads}, or set "
            f"model.head_dim"
        )
    elif model.positions == "rope":
        problems += _rope(model)
    if model.norm_bias and model.norm != "layernorm":
        problems.append(
            f"model.norm_bias=true has no effect with model.norm={model.norm}\n    hint: model.norm=layernorm"
        )
    if model.positions == "sinusoidal" and model.d_model % 2:
        even = math.lcm(2, model.n_heads)
        problems.append(
            f"model.d_model={model.d_model} is odd; sinusoidal positions need pairs of channels\n"
            f"    hint: model.d_model={math.ceil(model.d_model / even) * even}"
        )
    if model.n_heads % model.n_kv_heads:
        problems.append(
            f"model.n_heads={model.n_heads} is not a multiple of model.n_kv_heads={model.n_kv_heads}\n"
            f"    hint: model.n_kv_heads={max(n for n in range(1, model.n_kv_heads + 1) if model.n_heads % n == 0)}"
        )
    if config.data.seq_len > model.max_seq_len:
        problems.append(
            f"data.seq_len={config.data.seq_len} is above model.max_seq_len={model.max_seq_len}\n"
            f"    hint: model.max_seq_len={config.data.seq_len}"
        )
    return problems


def _rope(model: ModelConfig) -> list[str]:
    problems = []
    if model.rotary_width % 2 or not model.rotary_width:
        of = "" if model.rope_fraction == 1 else f" times model.rope_fraction={model.rope_fraction:g}"
        problems.append(
            f"model.head_dim={model.head_width}{of} gives {model.rotary_width} rotary channels; RoPE needs an even number > 0"
        )
    if model.rope_scaling == "none":
        if model.rope_factor != 1:
            problems.append(
                f"model.rope_factor={model.rope_factor:g} has no effect with model.rope_scaling=none\n"
                f"    hint: model.rope_scaling=llama3"
            )
        return problems
    if model.rope_scaling != "linear" and not 0 < model.rope_original_seq_len <= model.max_seq_len:
        problems.append(
            f"model.rope_scaling={model.rope_scaling} needs model.rope_original_seq_len between 1 and model.max_seq_len="
            f"{model.max_seq_len}, not {model.rope_original_seq_len}\n"
            f"    hint: the context length of the original training"
        )
    if model.rope_scaling == "llama3" and model.rope_low_freq_factor >= model.rope_high_freq_factor:
        problems.append(
            f"model.rope_low_freq_factor={model.rope_low_freq_factor:g} is not below model.rope_high_freq_factor="
            f"{model.rope_high_freq_factor:g}"
        )
    if model.rope_scaling == "yarn" and model.rope_beta_slow >= model.rope_beta_fast:
        problems.append(
            f"model.rope_beta_slow={model.rope_beta_slow:g} is not below model.rope_beta_fast={model.rope_beta_fast:g}"
        )
    return problems


def _data(config: Config) -> list[str]:
    return [
        *(
            f"data.valid.{name}.{key}={getattr(source, key)} has no effect: held-out sources are weighted by token count"
            for name, source in config.data.valid.items()
            for key, usual in (("weight", 1), ("max_epochs", None))
            if getattr(source, key) != usual
        ),
        *_weights(config),
    ]


def _weights(config: Config) -> list[str]:
    """Stages of weights: known sources, a positive weight in each stage, distinct starts."""
    data, problems = config.data, []
    if data.train and not any(source.weight for source in data.train.values()):
        problems.append(f"data.train: every weight is 0\n    hint: data.train.{next(iter(data.train))}.weight=1")
    starts: dict[int, str] = {}
    for name, stage in data.stages.items():
        where = f"data.stages.{name}"
        for unknown in sorted(set(stage.weights) - set(data.train)):
            near = difflib.get_close_matches(unknown, data.train, n=1)
            hint = f"did you mean {near[0]}?" if near else f"data.train.{unknown}.path=DIR"
            problems.append(f"{where}.weights.{unknown} is not a source of data.train\n    hint: {hint}")
        if not any(stage.weights.values()):
            problems.append(f"{where}.weights has no positive weight\n    hint: {where}.weights.NAME=1")
        if stage.start_step in starts:
            problems.append(
                f"{where} and data.stages.{starts[stage.start_step]} both have start_step={stage.start_step}"
            )
        starts[stage.start_step] = name
        if stage.start_step >= config.schedule.total_steps:
            problems.append(
                f"{where}.start_step={stage.start_step} is not below schedule.total_steps={config.schedule.total_steps}, so "
                f"it would never start"
            )
    used = {name for stage in data.stages.values() for name, weight in stage.weights.items() if weight}
    problems += [
        f"data.train.{name}.weight=0, and no stage of data.stages reads it\n    hint: remove the source"
        for name, source in data.train.items()
        if not source.weight and name not in used
    ]
    return problems


def _batch(config: Config) -> list[str]:
    batch, problems = config.batch, []
    size, micro = batch.global_batch_size, batch.micro_batch_size
    if size % micro:
        problems.append(
            f"batch.global_batch_size={size} is not a multiple of batch.micro_batch_size={micro}\n"
            f"    hint: batch.global_batch_size={max(1, size // micro) * micro}"
        )
    return problems + (_ramp(config) if any((batch.ramp_start_size, batch.ramp_increment, batch.ramp_steps)) else [])


def _ramp(config: Config) -> list[str]:
    """Batch size ramp: all three keys set, increments that add up, at least one step at each size."""
    batch = config.batch
    keys = {key: getattr(batch, key) for key in ("ramp_start_size", "ramp_increment", "ramp_steps")}
    if not all(keys.values()):
        missing = ", ".join(f"batch.{key}" for key, value in keys.items() if not value)
        return [f"the batch size ramp also needs {missing}\n    hint: set all three batch.ramp_… keys, or none"]
    problems = [
        f"batch.{key}={keys[key]} is not a multiple of batch.micro_batch_size={batch.micro_batch_size}"
        for key in ("ramp_start_size", "ramp_increment")
        if keys[key] % batch.micro_batch_size
    ]
    growth = batch.global_batch_size - batch.ramp_start_size
    if growth <= 0 or growth % batch.ramp_increment:
        problems.append(
            f"batch.ramp_start_size={batch.ramp_start_size} does not reach batch.global_batch_size="
            f"{batch.global_batch_size} in steps of batch.ramp_increment={batch.ramp_increment}"
        )
    elif batch.ramp_steps < growth // batch.ramp_increment:
        problems.append(
            f"batch.ramp_steps={batch.ramp_steps} is below the number of batch sizes in the ramp\n"
            f"    hint: batch.ramp_steps={growth // batch.ramp_increment}, or a larger batch.ramp_increment"
        )
    return problems


def _schedule(config: Config) -> list[str]:
    schedule, problems = config.schedule, []
    if schedule.warmup_steps + schedule.decay_steps > schedule.total_steps:
        fitting = max(0, min(schedule.total_steps // 10, schedule.total_steps - schedule.decay_steps))
        problems.append(
            f"schedule.warmup_steps={schedule.warmup_steps} and decay_steps={schedule.decay_steps} exceed "
            f"schedule.total_steps={schedule.total_steps}\n    hint: schedule.warmup_steps={fitting}"
        )
    if schedule.decay_steps and schedule.kind != "wsd":
        problems.append(
            f"schedule.decay_steps={schedule.decay_steps} has no effect with schedule.kind={schedule.kind}\n"
            f"    hint: schedule.kind=wsd, or schedule.decay_steps=0"
        )
    return problems


def _engine(config: Config) -> list[str]:
    engine = config.engine
    if engine.zero_stage == 0 and engine.precision != "fp32":
        return [
            f"engine.zero_stage=0 with engine.precision={engine.precision}: DeepSpeed's half precision optimizers of stage 0 "
            f"take a spurious step at start-up\n    hint: engine.zero_stage=1, the same memory on one process"
        ]
    if engine.precision == "fp16" and engine.device == "cpu":
        return ["engine.precision=fp16 is not supported on CPU\n    hint: engine.precision=bf16"]
    return []


def _guard(config: Config) -> list[str]:
    every, stage = config.guard.replicas_every_steps, config.engine.zero_stage
    if every and stage == 3:
        return [
            f"guard.replicas_every_steps={every} with engine.zero_stage=3: stage 3 has no replicas to compare\n"
            f"    hint: guard.replicas_every_steps=0, or engine.zero_stage=2"
        ]
    return []


def _evaluation(config: Config) -> list[str]:
    problems = []
    if config.eval.prompts and config.data.tokenizer is None:
        problems.append("eval.prompts needs data.tokenizer\n    hint: data.tokenizer=DIR/tokenizer.model")
    if config.eval.prompts and not config.eval.every_steps:
        problems.append(
            "eval.prompts has no effect with eval.every_steps=0: samples are generated at evaluations\n"
            "    hint: eval.prompts=[]"
        )
    return problems
