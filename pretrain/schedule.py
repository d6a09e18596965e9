"""Learning rate: a pure function of the step, so that resuming needs no scheduler state.

- cosine ....... Loshchilov & Hutter 2017, "SGDR", https://arxiv.org/abs/1608.03983
- wsd .......... Hu et al. 2024, "MiniCPM", https://arxiv.org/abs/2404.06395 (warmup, stable, decay)
"""

import math

from pretrain.config.schema import ScheduleConfig


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
