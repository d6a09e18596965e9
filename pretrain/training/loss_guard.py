"""Losses and gradients that are not finite, and loss spikes.

Every rank judges the same numbers (sums over all ranks) and reaches the same verdict without communication.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence

from pretrain.config.schema import GuardConfig
from pretrain.errors import TrainingError

MAD_TO_STD = 1.4826  # standard deviation of a normal distribution / its median absolute deviation


class LossGuard:
    """Judges each step; remembers the losses of the last `spike_window_steps`."""

    def __init__(self, config: GuardConfig, *, gradient_may_overflow: bool) -> None:
        self.config, self.gradient_may_overflow = config, gradient_may_overflow
        self.losses: deque[float] = deque(maxlen=config.spike_window_steps)

    def restore(self, losses: Sequence[float]) -> None:
        """Restore the window from a checkpoint, so that a resumed run judges as an uninterrupted one."""
        self.losses = deque(losses, maxlen=self.config.spike_window_steps)

    def judge(self, loss: float, grad_norm: float) -> tuple[str, str] | None:
        """(action, reason) for a bad step, action being `stop` or `rollback`; None adds the loss to the window."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            # In fp16, DeepSpeed skips a step whose gradient overflows, and lowers the loss scale.
            if not math.isfinite(value) and not (name != "loss" and self.gradient_may_overflow):
                return self.config.on_nonfinite, f"{name} is {value}"
        limit = spike_limit(self.losses, self.config)
        if self.config.on_spike != "ignore" and limit is not None and loss > limit:
            return (
                self.config.on_spike,
                f"loss {loss:.4f} is a spike: above {limit:.4f}, the limit over the last {len(self.losses)} steps",
            )
        self.losses.append(loss)
        return None


def spike_limit(losses: Sequence[float], config: GuardConfig) -> float | None:
    """Largest loss that is not a spike: median + deviations · 1.4826 · median absolute deviation, over the window.

    None while less than half of the window is filled. Median and MAD (Leys et al. 2013,
    https://doi.org/10.1016/j.jesp.2013.03.013) are not moved by a spike that is in the window itself.
    """
    if len(losses) < config.spike_window_steps / 2:
        return None
    median = statistics.median(losses)
    deviation = MAD_TO_STD * statistics.median(abs(loss - median) for loss in losses)
    # Without a floor, any change would be a spike after losses that hardly differ.
    return median + config.spike_deviations * max(deviation, 1e-3 * abs(median))


def fatal(step: int, reason: str, *, hint: str | None = None) -> TrainingError:
    """The error that ends a run at a bad step, the same on every rank."""
    error = TrainingError(
        f"step {step}: {reason}",
        hint=hint
        or "lower optimizer.lr or lengthen schedule.warmup_steps, and resume from the last checkpoint, saved before this step; "
        "guard.on_nonfinite=rollback and guard.on_spike=rollback skip such batches",
    )
    error.everywhere = True
    return error
