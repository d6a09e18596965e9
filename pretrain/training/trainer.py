"""The training loop.

1. agree         one small all-reduce: targets of the global batch, stop requests, state of a save
2. train_step    forward and backward over this rank's micro-batches, clip, update      distributed/engine.py
3. judge         loss not finite, or a spike: stop, or roll back and skip the batches   loss_guard.py
4. record        metrics.jsonl, TensorBoard, the console                                recorder.py
5. periodically  evaluate, generate samples, save                                       periodic_eval.py, checkpoint/
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from pretrain.checkpoint.async_saver import AsyncSaver
from pretrain.checkpoint.restore import load_checkpoint
from pretrain.config.schema import Config
from pretrain.distributed.collectives import sum_over_ranks
from pretrain.distributed.engine import Batch, Engine
from pretrain.distributed.world import World
from pretrain.errors import TrainingError
from pretrain.health.replicas import compare_replicas
from pretrain.health.stop_request import StopRequest
from pretrain.health.stragglers import Stragglers
from pretrain.health.watchdog import Watchdog
from pretrain.model.loss import IGNORE
from pretrain.optim.schedule import batch_size, lr_fraction
from pretrain.plan.counts import flops_per_token
from pretrain.run_folder import Progress, RunFolder, SkippedRange
from pretrain.training.batches import Batches, BatchLoader
from pretrain.training.console import headline
from pretrain.training.loss_guard import LossGuard, fatal
from pretrain.training.periodic_eval import PeriodicEval
from pretrain.training.recorder import Recorder
from pretrain.training.startup.attempt import Attempt
from pretrain.training.startup.init_weights import changed_rotation, load_initial_weights
from pretrain.training.startup.opened_data import OpenedData
from pretrain.training.startup.resume import ResumePoint


class Trainer:
    """One process of a run. The process group must be up."""

    def __init__(
        self,
        config: Config,
        world: World,
        device: torch.device,
        data: OpenedData,
        stop: StopRequest,
        watchdog: Watchdog,
    ) -> None:
        self.config, self.world, self.device, self.data, self.stop = config, world, device, data, stop
        self.watchdog = watchdog
        self.folder = RunFolder(Path(config.run.dir))
        self.attempt = Attempt(self.folder, world, data)
        self.engine = Engine(config, world, device)
        self.batches = BatchLoader(data, world, device)
        self.guard = LossGuard(config.guard, gradient_may_overflow=config.engine.precision == "fp16")
        self.stragglers = Stragglers(device, config.guard.straggler_every_steps)
        self.periodic_eval = PeriodicEval(self.engine, data, world, device, stop, watchdog)
        self.progress = Progress()
        self.saver: AsyncSaver
        self.recorder: Recorder
        self._closing = ExitStack()
        self._firsts: deque[int] = deque(maxlen=config.guard.jump_steps)  # first samples of the last batches

    def run(self) -> str:
        """Train to the end or to a stop. Returns the final status: `done` or `unfinished`."""
        with self._closing:
            self._open()
            return self._loop()

    def _loop(self) -> str:
        total = self.config.schedule.total_steps
        # A resumed run may have been stopped during this step's evaluation.
        evaluate_first = self.progress.step in (0, total) or self._due(self.config.eval.every_steps)
        complete = self.periodic_eval.run(self.progress.step, self.recorder) if evaluate_first else True
        while self.progress.step < total:
            started = time.perf_counter()
            self.watchdog.at("data", self.progress.step + 1)
            self.progress = self.progress.after_skipped(self.attempt.skipped)
            with self.stragglers.data():
                batches = self.batches.next(self.progress)
            targets, stopping = self._agree(batches)
            if stopping:
                return self._finish("unfinished")
            verdict = self._step(batches, int(targets), started)
            if verdict is not None:
                self._roll_back_or_stop(*verdict)
                continue
            step = self.progress.step
            if self._due(self.config.eval.every_steps) or step == total:
                complete = self.periodic_eval.run(step, self.recorder)
            full, weights = (
                self._due(every)
                for every in (self.config.checkpoint.every_steps, self.config.checkpoint.weights_every_steps)
            )
            if full or weights:
                self._save(full=full, weights=weights)
        return self._finish("done" if complete else "unfinished")

    def _step(self, batches: Batches, targets: int, started: float) -> tuple[str, str] | None:
        """One update, judged and recorded. `started` includes the wait for data: a run that starves must look slow."""
        lr = self.config.optimizer.lr * lr_fraction(self.progress.step + 1, self.config.schedule)
        inputs = [Batch(batch["inputs"], batch["targets"], batch.get("documents")) for batch in batches]
        sums = self.engine.train_step(
            inputs, targets, lr, around_forward=self._forward, before_update=self._before_update
        )
        cross_entropy, z_squared = sum_over_ranks([sums.cross_entropy, sums.z_squared], self.device)
        first = self.progress.samples
        self._firsts.append(first)
        self.progress = self.progress.advanced(self.batches.end(self.progress), targets)
        seconds = time.perf_counter() - started
        loss = cross_entropy / targets
        verdict = self.guard.judge(loss, sums.grad_norm)
        if verdict is not None:
            return verdict
        values = {
            "step": self.progress.step,
            "loss": loss,
            "grad_norm": sums.grad_norm if math.isfinite(sums.grad_norm) else None,
            "lr": lr,
            "tokens": self.progress.tokens,
            "tokens_per_second": targets / seconds,
            "samples": self.progress.samples,
            "seconds": seconds,
            "z_squared": z_squared / targets,
            "epoch": self.batches.epochs(self.progress.samples),
            "model_flops_per_second": targets * flops_per_token(self.config.model, self.config.data.seq_len) / seconds,
            "sources": self.batches.tokens_read(self.progress.samples),
        }
        if self.config.data.audit:
            size = batch_size(self.progress.step - 1, self.config.batch)
            line = {"step": self.progress.step, "samples": first, "batch": size, "digest": self.batches.audit(batches)}
            self.recorder.audit(line)
        slowest = self.stragglers.step(self.progress.step)
        if slowest is not None:
            values["slowest"] = slowest.to_json()
            if slowest.notable:
                self.recorder.say(f"step {self.progress.step}: {slowest}")
        self.recorder.step(values)
        self.stop.margin_s = 2 * (seconds + self.saver.seconds)
        return None

    @contextmanager
    def _forward(self) -> Iterator[None]:
        self.watchdog.at("forward and backward", self.progress.step + 1)
        with self.stragglers.forward():
            yield

    def _before_update(self) -> None:
        step, every = self.progress.step + 1, self.config.guard.replicas_every_steps
        self.watchdog.at("update", step)
        if every and step % every == 0:
            compare_replicas(self.engine.model, step)

    def _agree(self, batches: Batches) -> tuple[float, float]:
        """Targets of the global batch, and the number of ranks that want to stop. Commits a save that all have written."""
        self.watchdog.at("agree", self.progress.step + 1)
        mine = sum(int((batch["targets"] != IGNORE).sum()) for batch in batches)
        flags = [self.stop.wanted(), self.attempt.superseded(), self.batches.error is not None]
        values = [float(mine), *map(float, flags), *self.saver.written_flags()]
        targets, stopping, superseded, unread, *written = sum_over_ranks(values, self.device)
        if unread:
            self.batches.raise_everywhere()
        if superseded:
            error = TrainingError(f"run {self.folder.path}: superseded by a later attempt; exiting without saving")
            error.everywhere = True
            raise error
        self.saver.commit_when_all_written(*written)
        return targets, stopping

    def _roll_back_or_stop(self, action: str, reason: str) -> None:
        """Stop, or go back to the newest checkpoint and skip the batches at fault."""
        step, end = self.progress.step, self.progress.samples
        self.watchdog.at("save", step)
        self.saver.flush()
        if action == "stop":
            raise fatal(step, reason)
        if len(self.attempt.skipped) >= self.config.guard.max_rollbacks:
            raise fatal(step, reason, hint=f"guard.max_rollbacks={self.config.guard.max_rollbacks} is reached")
        self.watchdog.at("load", step)
        point = self.attempt.newest()
        if point is None or point.state is None:
            raise fatal(step, reason, hint="no checkpoint yet to roll back to; use a smaller checkpoint.every_steps")
        first = max(self._firsts[0], int(point.state["samples"]))
        self.attempt.skip(SkippedRange(first, end - first, step, reason))
        self._restore(point)
        self.saver.continue_from(self.progress.step, point.checkpoint)
        self.recorder.rewind(self.progress.step)
        self.recorder.say(
            f"step {step}: {reason}; rolled back to step {self.progress.step}; samples {first} to {end - 1} are skipped"
        )

    def _open(self) -> None:
        """Claim the run, load the point to start from, and open the files that rank 0 writes."""
        try:
            point = self.attempt.begin(self.stop)
        finally:
            self.watchdog.attempt = self.attempt.number
        if self.world.is_main and (origin := point.checkpoint or point.initial_weights) is not None:
            print(f"loading {origin} …", flush=True)
        self._restore(point)
        self.recorder = Recorder(
            self.folder,
            self.config,
            resumed_step=None if point.checkpoint is None else point.step,
            speaks=self.world.is_main,
        )
        self._closing.callback(self.recorder.close)
        self.saver = AsyncSaver(
            self.folder,
            self.attempt.number,
            self.config.checkpoint,
            self.world,
            self.device,
            self.recorder.say,
            fence=self.attempt.fence,
            remote=self.attempt.remote,
        )
        self._closing.callback(self.saver.close)
        self.saver.continue_from(point.step, point.checkpoint)
        for reason in point.skipped if self.world.is_main else ():
            self.recorder.say(f"skipped a checkpoint: {reason}")
        for change in point.changes:
            self.recorder.say(change)
        for change in changed_rotation(self.config, point.initial_weights):
            self.recorder.say(f"rotary positions differ from run.init_from: {change}")
        self.recorder.say(headline(self.config, self.world.size, self.device.type, self.progress.step))
        if not self.config.data.valid:
            self.recorder.say("no held-out loss: data.valid names no source\n  hint: data.valid.NAME.path=DIR")
        self.recorder.start(self.progress.step)

    def _restore(self, point: ResumePoint) -> None:
        """Load weights and state of the point to continue from."""
        self.watchdog.at("load", self.progress.step)
        self.batches.plan(point.state, self.attempt.skipped)
        if point.checkpoint is not None and point.state is not None:
            self.progress = load_checkpoint(point.checkpoint, point.state, self.engine, self.world)
            self.guard.restore(point.state.get("losses", []))
            loss = point.state.get("validation_loss")
            self.periodic_eval.loss = None if loss is None else (self.progress.step, loss)
        elif point.initial_weights is not None:
            load_initial_weights(point.initial_weights, self.engine)
        self._firsts.clear()

    def _save(self, *, full: bool, weights: bool = False) -> None:
        self.watchdog.at("save", self.progress.step)
        state = {
            "order": self.batches.order.description,
            "ledger": self.batches.tokens_read(self.progress.samples),
            "jumps": [samples._asdict() for samples in self.attempt.skipped],
            "losses": list(self.guard.losses),
            "validation_loss": self.periodic_eval.loss_at(self.progress.step),
        }
        self.saver.start(self.engine, self.progress, state, tokenizer=self.data.tokenizer, full=full, weights=weights)

    def _finish(self, status: str) -> str:
        self.watchdog.at("save", self.progress.step)
        self.saver.flush()
        if self.progress.step not in (0, self.saver.saved_step):
            self._save(full=True)
            self.saver.flush()
            if self.saver.saved_step != self.progress.step:
                raise fatal(
                    self.progress.step,
                    "the last checkpoint could not be saved",
                    hint=f"the reason is in {self.folder.logs / 'train.log'}",
                )
        if self.world.is_main:
            self.attempt.leave(status)
            self.folder.stop_file.unlink(missing_ok=True)
        self.watchdog.at("save", self.progress.step)
        self.saver.finish()
        reason = f" ({self.stop.reason})" if self.stop.reason else ""
        again = "; the same command resumes it" if status == "unfinished" else ""
        self.recorder.say(f"{status} at step {self.progress.step}{reason}{again}")
        return status

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0
