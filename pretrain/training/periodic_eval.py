"""Periodic evaluation: held-out loss and samples. Stops early on request.

All ranks run the same number of forwards in both: under ZeRO-3 each forward gathers weights from all ranks.
"""

from functools import partial

import torch

from pretrain.distributed.collectives import sum_over_ranks
from pretrain.distributed.engine import Batch, Engine
from pretrain.distributed.world import World
from pretrain.evaluation.held_out import BatchSums, evaluation_values, score_sources
from pretrain.generation.prompts import sample_prompts
from pretrain.health.stop_request import StopRequest
from pretrain.health.watchdog import Watchdog
from pretrain.training.recorder import Recorder
from pretrain.training.samples import describe_samples, make_samples
from pretrain.training.startup.preflight import OpenedData


class _StopAskedError(Exception):
    """A stop was requested; raised between two forwards, on all ranks at once."""


class PeriodicEval:
    """`loss` is (step, loss) of the last validation."""

    def __init__(
        self,
        engine: Engine,
        data: OpenedData,
        world: World,
        device: torch.device,
        stop: StopRequest,
        watchdog: Watchdog,
    ) -> None:
        self.engine, self.data, self.world, self.device = engine, data, world, device
        self.config, self.stop, self.watchdog = data.config, stop, watchdog
        self.loss: tuple[int, float] | None = None

    def loss_at(self, step: int) -> float | None:
        """Validation loss of this very step, if there is one."""
        return self.loss[1] if self.loss is not None and self.loss[0] == step else None

    def run(self, step: int, recorder: Recorder) -> bool:
        """Evaluate and generate samples. False if a stop request cut it short. A collective."""
        return self._evaluate(step, recorder) and self._sample(step, recorder)

    def _evaluate(self, step: int, recorder: Recorder) -> bool:
        settings = self.config.eval
        if self.loss_at(step) is not None or not self.data.valid or not settings.every_steps:
            return True  # a resumed run does not repeat a validation
        try:
            with recorder.phase(f"evaluating at step {step}"):
                scores = score_sources(
                    self.data.valid,
                    partial(self._held_out_sums, step),
                    max_sequences=settings.max_sequences,
                    micro_batch_size=self.config.batch.micro_batch_size,
                    world=self.world,
                    add=partial(sum_over_ranks, device=self.device),
                    document_mask=self.config.data.document_mask,
                )
        except _StopAskedError:
            recorder.say(f"validation at step {step} was cut short by a stop request")
            return False
        values = evaluation_values(scores)
        self.loss = step, values["loss"]
        recorder.evaluation({"step": step, **values})
        return True

    def _sample(self, step: int, recorder: Recorder) -> bool:
        prompts, settings = sample_prompts(self.config, self.data.tokenizer), self.config.eval
        if not prompts or self.data.tokenizer is None:
            return True
        between = partial(self._between_forwards, step)
        try:
            with recorder.phase(f"sampling at step {step}"):
                made = make_samples(self.engine.logits_fn(), prompts, settings.sample_tokens, between)
        except _StopAskedError:
            recorder.say(f"samples at step {step} were cut short by a stop request")
            return False
        recorder.samples(step, describe_samples(settings.prompts, prompts, made, self.data.tokenizer))
        return True

    def _held_out_sums(self, step: int, batch: Batch) -> BatchSums:
        self._between_forwards(step)
        return BatchSums(*self.engine.evaluate(batch))

    def _between_forwards(self, step: int) -> None:
        self.watchdog.at("evaluate", step)
        if sum_over_ranks([float(self.stop.wanted())], self.device)[0]:
            raise _StopAskedError
