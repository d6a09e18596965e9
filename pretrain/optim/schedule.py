"""Learning rate and batch size as pure functions of the step: resuming needs no scheduler state.

- cosine ....... Loshchilov & Hutter 2017, "SGDR", https://arxiv.org/abs/1608.03983
- wsd .......... Hu et al. 2024, "MiniCPM", https://arxiv.org/abs/2404.06395 (warmup, stable, decay)
- batch ramp ... Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B, https://arxiv.org/abs/2005.14165
"""

import math

from pretrain.config.schema import BatchConfig, ScheduleConfig


def lr_fraction(step: int, schedule: ScheduleConfig) -> float:
    """Learning rate of optimizer step `step` (the first is 1), as a fraction of the peak.

    Warmup rises linearly and reaches 1 at step `warmup_steps`; the last step, `total_steps`, has `final_lr_fraction`.
    """
    warmup, total, final = schedule.warmup_steps, schedule.total_steps, schedule.final_lr_fraction
    if step <= warmup:
        return step / warmup
    if schedule.kind == "constant":
        return 1.0
    start = warmup
    if schedule.kind == "wsd":
        start = max(warmup, total - (schedule.decay_steps or max(1, total // 10)))
    progress = min(1.0, max(0.0, (step - start) / max(1, total - start)))
    if schedule.kind == "cosine":
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return final + (1.0 - final) * (1.0 - progress)


def batch_levels(batch: BatchConfig) -> list[tuple[int, int]]:
    """Batch-size ramp as (steps before it, global batch size), in order; one entry without a ramp."""
    if not batch.ramp_start_size:
        return [(0, batch.global_batch_size)]
    growths = (batch.global_batch_size - batch.ramp_start_size) // batch.ramp_increment
    return [
        (level * batch.ramp_steps // growths, batch.ramp_start_size + level * batch.ramp_increment)
        for level in range(growths + 1)
    ]


def batch_size(step: int, batch: BatchConfig) -> int:
    """Global batch size, in sequences, of the optimizer step after `step` steps."""
    return next(size for start, size in reversed(batch_levels(batch)) if start <= step)


def samples_between(first: int, last: int, batch: BatchConfig) -> int:
    """Sequences consumed from step `first` to step `last`."""
    levels = batch_levels(batch)
    ends = [start for start, _ in levels[1:]] + [last]
    return sum(
        max(0, min(end, last) - max(start, first)) * size for (start, size), end in zip(levels, ends, strict=True)
    )
