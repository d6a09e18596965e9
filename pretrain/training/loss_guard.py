"""When a loss is not to be trusted: not finite, or a spike above its recent past.

Every rank judges the same numbers, sums over all ranks, and so comes to the same verdict without asking the others.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence

from pretrain.config.schema import GuardConfig
from pretrain.errors import TrainingError

NORMAL = 1.4826  # of a normal distribution, the standard deviation is so many times the median absolute deviation


class LossGuard:
    """Judges each step; remembers the losses of the last `spike_window_steps`."""

    def __init__(self, config: GuardConfig, *, gradient_may_overflow: bool) -> None:
        self.config, self.gradient_may_overflow = config, gradient_may_overflow
        self.losses: deque[float] = deque(maxlen=config.spike_window_steps)

    def restore(self, losses: Sequence[float]) -> None:
        """What a checkpoint remembers, so that a resumed run judges as an undisturbed one."""
        self.losses = deque(losses, maxlen=self.config.spike_window_steps)

    def judge(self, loss: float, grad_norm: float) -> tuple[str, str] | None:
        """(what to do, why) where something is wrong: `stop` or `rollback`. A loss that is fine joins the window.

        In fp16 a gradient that overflows is DeepSpeed's to skip, with a smaller loss scale.
        """
        for name, value in (("loss", loss), ("norm of the gradient", grad_norm)):
            if not math.isfinite(value) and not (name != "loss" and self.gradient_may_overflow):
                return self.config.on_nonfinite, f"the {name} is {value}"
        limit = spike_limit(self.losses, self.config)
        if self.config.on_spike != "ignore" and limit is not None and loss > limit:
            return (
                self.config.on_spike,
                f"the loss is {loss:.4f}, and the last {len(self.losses)} make {limit:.4f} the limit",
            )
        self.losses.append(loss)
        return None


def spike_limit(losses: Sequence[float], config: GuardConfig) -> float | None:
    """The largest loss that is no spike: median + deviations · 1.4826 · median absolute deviation, over the window.

    Median and MAD because one spike in the window must not hide the next (Leys et al. 2013,
    https://doi.org/10.1016/j.jesp.2013.03.013). None while less than half of the window is filled.
    """
    if len(losses) < config.spike_window_steps / 2:
        return None
    median = statistics.median(losses)
    deviation = NORMAL * statistics.median(abs(loss - median) for loss in losses)
    # Losses that hardly differ would make anything a spike.
    return median + config.spike_deviations * max(deviation, 1e-3 * abs(median))


def fatal(step: int, reason: str, *, hint: str | None = None) -> TrainingError:
    """The error of a verdict `stop`, the same on every rank."""
    error = TrainingError(
        f"step {step}: {reason}",
        hint=hint
        or "a lower optimizer.lr or a longer schedule.warmup_steps; the last checkpoint is from before it; "
        "guard.on_nonfinite=rollback and guard.on_spike=rollback jump over such batches",
    )
    error.everywhere = True
    return error
