"""The training loop.

1. agree         one small all-reduce: targets of the global batch, who wants to stop, what became of a save
2. train_step    forward and backward over this rank's micro-batches, clip, update          engine.py
3. judge         a loss that is not finite, or a spike: stop, or go back and jump over it   guards.py
4. write down    metrics.jsonl, TensorBoard, the console                                    recorder.py
5. sometimes     evaluate, write samples, save                                              looks.py, checkpoint/
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
from pretrain.distributed.collectives import lost_peer, sum_over_ranks
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
from pretrain.training.startup.init_weights import changed_rotation, load_start
from pretrain.training.startup.preflight import Found, OpenedData


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
        self.feed = BatchLoader(data, world, device)
        self.guard = LossGuard(config.guard, gradient_may_overflow=config.engine.precision == "fp16")
        self.stragglers = Stragglers(device, config.guard.straggler_every_steps)
        self.looks = PeriodicEval(self.engine, data, world, device, stop, watchdog)
        self.progress = Progress()
        self.saver: AsyncSaver
        self.recorder: Recorder
        self._closing = ExitStack()
        self._firsts: deque[int] = deque(maxlen=config.guard.jump_steps)  # where the last batches began

    def run(self) -> str:
        """Train to the end or to a stop. Returns the status that was left: `done` or `unfinished`."""
        with self._closing:
            try:
                self._open()
                return self._loop()
            except Exception as error:
                if not lost_peer(error):
                    self.attempt.leave("failed")
                raise

    def _loop(self) -> str:
        total = self.config.schedule.total_steps
        # A run that goes on may have been stopped in the middle of this step's evaluation.
        begins = self.progress.step in (0, total) or self._due(self.config.eval.every_steps)
        whole = self.looks.look(self.progress.step, self.recorder) if begins else True
        while self.progress.step < total:
            started = time.perf_counter()
            self.watchdog.at("data", self.progress.step + 1)
            self.progress = self.progress.jumped(self.attempt.jumps)
            with self.stragglers.data():
                batches = self.feed.next(self.progress)
            targets, stopping = self._agree(batches)
            if stopping:
                return self._finish("unfinished")
            verdict = self._step(batches, int(targets), started)
            if verdict is not None:
                self._answer(*verdict)
                continue
            step = self.progress.step
            if self._due(self.config.eval.every_steps) or step == total:
                whole = self.looks.look(step, self.recorder)
            state, weights = (
                self._due(every)
                for every in (self.config.checkpoint.every_steps, self.config.checkpoint.weights_every_steps)
            )
            if state or weights:
                self._save(whole=state, weights=weights)
        return self._finish("done" if whole else "unfinished")

    def _step(self, batches: Batches, targets: int, started: float) -> tuple[str, str] | None:
        """One update, judged and written down. `started` is before the wait for data: a run that starves must look slow."""
        lr = self.config.optimizer.lr * lr_fraction(self.progress.step + 1, self.config.schedule)
        inputs = [Batch(batch["inputs"], batch["targets"], batch.get("documents")) for batch in batches]
        sums = self.engine.train_step(
            inputs, targets, lr, around_forward=self._forward, before_update=self._before_update
        )
        cross_entropy, z_squared = sum_over_ranks([sums.cross_entropy, sums.z_squared], self.device)
        first = self.progress.samples
        self._firsts.append(first)
        self.progress = self.progress.advanced(batch_size(self.progress.step, self.config.batch), targets)
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
            "epoch": self.feed.epochs(self.progress.samples),
            "model_flops_per_second": targets * flops_per_token(self.config.model, self.config.data.seq_len) / seconds,
            "sources": self.feed.ledger(self.progress.samples),
        }
        if self.config.data.audit:
            size = self.progress.samples - first
            line = {"step": self.progress.step, "samples": first, "batch": size, "digest": self.feed.audit(batches)}
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
        """Targets of the global batch, and the number of ranks that want to stop; settles a save that all have written."""
        self.watchdog.at("agree", self.progress.step + 1)
        mine = sum(int((batch["targets"] != IGNORE).sum()) for batch in batches)
        doubts = [self.stop.wanted(), self.attempt.outdated(), self.feed.problem is not None]
        values = [float(mine), *map(float, doubts), *self.saver.written_flags()]
        targets, stopping, outdated, unread, *flags = sum_over_ranks(values, self.device)
        if unread:
            self.feed.give_up()
        if outdated:
            error = TrainingError(f"a later attempt of run {self.folder.path} has begun: this one ends unsaved")
            error.everywhere = True
            raise error
        self.saver.commit_when_all_written(*flags)
        return targets, stopping

    def _answer(self, action: str, reason: str) -> None:
        """Stop, or go back to the newest checkpoint and jump over the batches at fault."""
        step, behind = self.progress.step, self.progress.samples
        self.watchdog.at("save", step)
        self.saver.flush()
        if action == "stop":
            raise fatal(step, reason)
        if len(self.attempt.jumps) >= self.config.guard.max_rollbacks:
            raise fatal(step, reason, hint=f"guard.max_rollbacks={self.config.guard.max_rollbacks} are used up")
        self.watchdog.at("load", step)
        found = self.attempt.newest()
        if found is None:
            raise fatal(step, reason, hint="there is no checkpoint yet to go back to; a smaller checkpoint.every_steps")
        first = max(self._firsts[0], int(found[1]["samples"]))
        self.attempt.jump(SkippedRange(first, behind - first, step, reason))
        self._restore(found)
        self.saver.continue_from(self.progress.step, found[0])
        self.recorder.rewind(self.progress.step)
        self.recorder.say(
            f"step {step}: {reason}; back to step {self.progress.step}, and samples {first} to {behind - 1} are jumped over"
        )

    def _open(self) -> None:
        """Claim the run, resume, and start the files that rank 0 writes."""
        found = self.attempt.begin(self.stop)
        self.watchdog.attempt = self.attempt.number
        self._restore(found)
        if found is None and self.attempt.start is not None:
            load_start(self.attempt.start, self.engine)
        self.recorder = Recorder(
            self.folder,
            self.config,
            resumed_step=None if found is None else self.progress.step,
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
        self.saver.continue_from(self.progress.step, None if found is None else found[0])
        for note in self.attempt.notes:
            self.recorder.say(f"skipped a checkpoint: {note}")
        for change in changed_rotation(self.config) if found is None else ():
            self.recorder.say(f"run.init_from had another rotation: {change}")
        self.recorder.say(headline(self.config, self.world.size, self.device.type, self.progress.step))
        self.recorder.start(self.progress.step)

    def _restore(self, found: Found) -> None:
        """Stand where a checkpoint stands, or at the beginning."""
        self.watchdog.at("load", self.progress.step)
        state = None if found is None else found[1]
        self.feed.plan(state, self.attempt.jumps)
        if found is not None and state is not None:
            self.progress = load_checkpoint(found[0], state, self.engine, self.world)
            self.guard.restore(state.get("losses", []))
            loss = state.get("validation_loss")
            self.looks.loss = None if loss is None else (self.progress.step, loss)
        self._firsts.clear()

    def _save(self, *, whole: bool, weights: bool = False) -> None:
        self.watchdog.at("save", self.progress.step)
        state = {
            "order": self.feed.order.description,
            "ledger": self.feed.ledger(self.progress.samples),
            "jumps": [jump._asdict() for jump in self.attempt.jumps],
            "losses": list(self.guard.losses),
            "validation_loss": self.looks.loss_at(self.progress.step),
        }
        self.saver.start(self.engine, self.progress, state, tokenizer=self.data.tokenizer, full=whole, weights=weights)

    def _finish(self, status: str) -> str:
        self.watchdog.at("save", self.progress.step)
        self.saver.flush()
        if self.progress.step not in (0, self.saver.saved_step):
            self._save(whole=True)
            self.saver.flush()
            if self.saver.saved_step != self.progress.step:
                raise fatal(self.progress.step, "the last checkpoint could not be saved", hint="the log says why")
        if self.world.is_main:
            self.attempt.leave(status)
            self.folder.stop_file.unlink(missing_ok=True)
        self.watchdog.at("save", self.progress.step)
        self.saver.finish()
        reason = f" ({self.stop.reason})" if self.stop.reason else ""
        again = "; the same command goes on from here" if status == "unfinished" else ""
        self.recorder.say(f"{status} at step {self.progress.step}{reason}{again}")
        return status

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0
