"""The training loop.

1. agree         one small all-reduce: targets of the global batch, and whether any rank wants to stop
2. train_step    forward and backward over this rank's micro-batches, clip, update          engine.py
3. write down    metrics.jsonl, TensorBoard, the console                                    metrics.py, reporting.py
4. sometimes     evaluate, save                                                             evaluate.py, checkpoint/
"""

import math
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch

from pretrain.audit import digest, sequence_sums
from pretrain.checkpoint import layout
from pretrain.checkpoint.load import load_checkpoint
from pretrain.checkpoint.save import save_checkpoint
from pretrain.config.load import save_config
from pretrain.config.schema import Config
from pretrain.data.order import Order
from pretrain.data.stream import Position, build_stream
from pretrain.distributed import from_main, sum_integers_over_ranks, sum_over_ranks
from pretrain.engine import Batch, Engine
from pretrain.errors import PretrainError, TrainingError
from pretrain.evaluate import evaluate
from pretrain.faults import StopRequest
from pretrain.loss import IGNORE
from pretrain.metrics import MetricsWriter
from pretrain.planning import count_parameters, flops_per_token, plan_batch
from pretrain.preflight import Prepared, find_resume
from pretrain.reporting import Reporter, format_count
from pretrain.schedule import batch_size, lr_fraction
from pretrain.state import Progress, RunFolder
from pretrain.world import World


class Trainer:
    """One process of a run. The process group must be up."""

    def __init__(self, config: Config, world: World, device: torch.device, data: Prepared, stop: StopRequest) -> None:
        self.config, self.world, self.device, self.data, self.stop = config, world, device, data, stop
        self.folder = RunFolder(Path(config.run.dir))
        self.order: Order | None = None
        self.engine = Engine(config, world, device)
        self.progress = Progress()
        self.saved_step = -1
        self.reporter: Reporter | None = None
        self.metrics: MetricsWriter | None = None
        self.lock: IO[str] | None = None

    def run(self) -> str:
        """Train to the end or to a stop. Returns the status that was left: `done` or `unfinished`."""
        self._open()
        try:
            return self._loop()
        except Exception:
            self.folder.set_status("failed")
            raise
        finally:
            self._close()

    def _loop(self) -> str:
        total = self.config.schedule.total_steps
        steps = self._micro_batches()
        if self.progress.step == 0:
            self._evaluate()
        while self.progress.step < total:
            started = time.perf_counter()
            batches = list(islice(steps, self._micro_batches_of_a_step()))
            targets, stopping = self._agree(batches)
            if stopping:
                return self._finish("unfinished")
            self._step(batches, int(targets), started)
            step = self.progress.step
            if self._due(self.config.eval.every_steps, step) or step == total:
                self._evaluate()
            if self._due(self.config.checkpoint.every_steps, step):
                self._save()
        return self._finish("done")

    def _step(self, batches: list[dict[str, Any]], targets: int, started: float) -> None:
        """One update, written down. `started` is before the wait for data: a run that starves must look slow."""
        lr = self.config.optimizer.lr * lr_fraction(self.progress.step + 1, self.config.schedule)
        inputs = [Batch(batch["inputs"], batch["targets"], batch.get("documents")) for batch in batches]
        sums = self.engine.train_step(inputs, targets, lr)
        cross_entropy, z_squared = sum_over_ranks([sums.cross_entropy, sums.z_squared], self.device)
        first = self.progress.samples
        self.progress = self.progress.advanced(batch_size(self.progress.step, self.config.batch), targets)
        seconds = time.perf_counter() - started
        loss = cross_entropy / targets
        self._check_finite(loss, sums.grad_norm)
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
            "epoch": self.progress.samples / sum(len(source) for source in self.data.train),
            "model_flops_per_second": targets * flops_per_token(self.config.model, self.config.data.seq_len) / seconds,
            "sources": self._ledger(),
        }
        if self.config.data.audit:
            self._audit(batches, first)
        if self.metrics is not None and self.reporter is not None:
            self.metrics.step(values)
            self.reporter.step(values)

    def _check_finite(self, loss: float, grad_norm: float) -> None:
        """Before anything is saved. In fp16 a gradient that overflows is DeepSpeed's to skip, with a smaller loss scale."""
        found = {"loss": loss, "norm of the gradient": grad_norm}
        if self.config.engine.precision == "fp16":
            del found["norm of the gradient"]
        for name, value in found.items():
            if not math.isfinite(value):
                error = TrainingError(
                    f"the {name} of step {self.progress.step} is {value}",
                    hint="a lower optimizer.lr or a longer schedule.warmup_steps; the last checkpoint is from before it",
                )
                error.everywhere = True
                raise error

    def _agree(self, batches: list[dict[str, Any]]) -> tuple[float, float]:
        """Targets of the global batch, and the number of ranks that want to stop."""
        mine = sum(int((batch["targets"] != IGNORE).sum()) for batch in batches)
        targets, stopping = sum_over_ranks([mine, float(self.stop.wanted())], self.device)
        return targets, stopping

    def _micro_batches(self) -> Any:
        assert self.order is not None
        return iter(
            build_stream(
                self.order,
                self.data.train,
                self.config.batch,
                self.world,
                Position(self.progress.step, self.progress.samples),
                self.config.data,
                pin=self.device.type == "cuda",
            )
        )

    def _micro_batches_of_a_step(self) -> int:
        per_rank = batch_size(self.progress.step, self.config.batch) // self.world.size
        return per_rank // self.config.batch.micro_batch_size

    def _ledger(self) -> dict[str, dict[str, float]]:
        """What has been read of each source until now."""
        assert self.order is not None
        counts = self.order.counts(self.progress.samples)
        return {
            source.name: {"tokens": int(count) * self.order.seq_len, "epochs": int(count) / source.sequences}
            for source, count in zip(self.order.sources, counts, strict=True)
        }

    def _audit(self, batches: list[dict[str, Any]], first: int) -> None:
        sums = sum_integers_over_ranks(sequence_sums(batches), self.device)
        if self.metrics is not None:
            size = self.progress.samples - first
            self.metrics.audit({"step": self.progress.step, "samples": first, "batch": size, "digest": digest(sums)})

    def _open(self) -> None:
        """Make the run folder, resume, and start the files that rank 0 writes."""
        notes: list[str] = []
        found, error = None, None
        if self.world.is_main:
            try:
                self.folder.make()
                self.lock = self.folder.claim()
                self._forget_old_stop()
                layout.clean(self.folder.checkpoints)
                self.stop.stop_file = self.folder.stop_file
                found = find_resume(self.data, hashes=True, skipped=notes.append)
                save_config(self.config, self.folder.config)
                self.folder.set_status("running")
            except PretrainError as problem:
                error = problem
        found, error = from_main((found, error))
        if error is not None:  # on every rank: one that waited for rank 0 would hang
            error.everywhere = True
            raise error
        self.order = self.data.order(None if found is None else found[1])
        if found is not None:
            self.progress = load_checkpoint(*found, self.engine, self.world)
            self.saved_step = self.progress.step
        if self.world.is_main:
            self.metrics = MetricsWriter(
                self.folder,
                resumed_step=None if found is None else self.progress.step,
                tensorboard=self.config.log.tensorboard,
            )
            self.reporter = Reporter(
                self.folder.logs / "train.log",
                total_steps=self.config.schedule.total_steps,
                every_steps=self.config.log.every_steps,
            )
            for note in notes:
                self.reporter.say(f"skipped a checkpoint: {note}")
            self.reporter.say(self._headline())
            self.reporter.start(self.progress.step)

    def _headline(self) -> str:
        start = f"resumed at step {self.progress.step}" if self.progress.step else "from scratch"
        size = format_count(count_parameters(self.config.model))
        return (
            f"{self.folder.path}: {size} parameters, ZeRO stage {self.engine.stage}, {self.config.engine.precision}, "
            f"{self.world.size} process{'es' if self.world.size > 1 else ''} on {self.device.type}, "
            f"{format_count(plan_batch(self.config, self.world.size).tokens_per_step)} tokens a step, {start}"
        )

    def _evaluate(self) -> None:
        if not self.data.valid or not self.config.eval.every_steps:
            return
        values = evaluate(
            self.data.valid,
            self.engine.evaluate,
            max_sequences=self.config.eval.max_sequences,
            micro_batch_size=self.config.batch.micro_batch_size,
            world=self.world,
            device=self.device,
            document_mask=self.config.data.document_mask,
        )
        if self.metrics is not None and self.reporter is not None:
            self.metrics.evaluation({"step": self.progress.step, **values})
            bits = f", {values['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in values else ""
            self.reporter.say(f"validation at step {self.progress.step}: loss {values['loss']:.4f}{bits}")

    def _save(self) -> None:
        if self.progress.step in (0, self.saved_step):
            return
        assert self.order is not None
        folder = save_checkpoint(
            self.folder.checkpoints,
            self.engine,
            self.world,
            self.progress,
            {"order": self.order.description, "ledger": self._ledger()},
            tokenizer=self.data.tokenizer,
            keep_last=self.config.checkpoint.keep_last,
        )
        self.saved_step = self.progress.step
        if self.reporter is not None:
            self.reporter.say(f"saved {folder}")

    def _finish(self, status: str) -> str:
        self._save()
        if self.reporter is not None:
            self.folder.set_status(status)
            self.folder.stop_file.unlink(missing_ok=True)
            reason = f" ({self.stop.reason})" if self.stop.reason else ""
            again = "; the same command goes on from here" if status == "unfinished" else ""
            self.reporter.say(f"{status} at step {self.progress.step}{reason}{again}")
        return status

    def _close(self) -> None:
        """Finish files and give the terminal back, however the run ended."""
        if self.metrics is not None:
            self.metrics.close()
        if self.reporter is not None:
            self.reporter.close()

    def _forget_old_stop(self) -> None:
        """A stop file from before this process asked an earlier one; one that came since asks us."""
        with suppress(FileNotFoundError):
            if self.folder.stop_file.stat().st_mtime < self.stop.since:
                self.folder.stop_file.unlink()

    @staticmethod
    def _due(every: int, step: int) -> bool:
        return every > 0 and step % every == 0
