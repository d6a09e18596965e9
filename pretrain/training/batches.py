"""Micro-batches of each step, and counts of what was read."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NoReturn

import torch

from pretrain.data.audit import digest, sequence_sums
from pretrain.data.gaps import position_after
from pretrain.data.loader import Position, build_stream
from pretrain.data.order import Order
from pretrain.distributed.collectives import gather_to_all, sum_integers_over_ranks
from pretrain.distributed.world import World
from pretrain.errors import PretrainError
from pretrain.optim.schedule import batch_size
from pretrain.run_folder import Progress, SkippedRange
from pretrain.training.startup.preflight import OpenedData

Batches = list[dict[str, Any]]


class BatchLoader:
    """This rank's micro-batches. The loader is rebuilt, which is cheap, when training continues at another sample."""

    def __init__(self, data: OpenedData, world: World, device: torch.device) -> None:
        self.data, self.world, self.device = data, world, device
        self.order: Order
        self._gaps: list[tuple[int, int]] = []
        self.error: PretrainError | None = None  # why the batches could not be read
        self._stream: Any = None
        self._next: tuple[int, int] | None = None  # step and samples at which the next batches begin

    def plan(self, state: dict[str, Any] | None, skipped: Sequence[SkippedRange]) -> None:
        """Plan the order for a run that continues from the state of a checkpoint, or starts."""
        self.order = self.data.order(state, skipped)
        self._gaps = [gap.span for gap in skipped]
        self._stream = None

    def next(self, progress: Progress) -> Batches:
        """Micro-batches of the step after `progress`; none if they cannot be read, with the reason in `error`.

        Not raised here: the other ranks are about to wait for this one, and must be told first.
        """
        config = self.data.config
        if self._stream is None or self._next != (progress.step, progress.samples):
            self._stream = iter(
                build_stream(
                    self.order,
                    self.data.train,
                    config.batch,
                    self.world,
                    Position(progress.step, progress.samples),
                    config.data,
                    gaps=self._gaps,
                    pin=self.device.type == "cuda",
                )
            )
        size = batch_size(progress.step, config.batch)
        self._next = progress.step + 1, self.end(progress)
        try:
            return list(islice(self._stream, size // self.world.size // config.batch.micro_batch_size))
        except PretrainError as error:
            self.error = error
            return []

    def end(self, progress: Progress) -> int:
        """The sample behind the step after `progress`."""
        return position_after(progress.samples, batch_size(progress.step, self.data.config.batch), self._gaps)

    def raise_everywhere(self) -> NoReturn:
        """Raise the read error of one rank on every rank. A collective."""
        error: PretrainError = next(found for found in gather_to_all(self.error) if found is not None)
        error.everywhere = True
        raise error

    def tokens_read(self, samples: int) -> dict[str, dict[str, float]]:
        """Tokens and epochs read of each source in the first `samples` samples."""
        return {
            source.name: {"tokens": int(count) * self.order.seq_len, "epochs": int(count) / source.sequences}
            for source, count in zip(self.order.sources, self.order.counts(samples), strict=True)
        }

    def epochs(self, samples: int) -> float:
        """Samples divided by the number of sequences of all sources."""
        return float(samples / self.order.sequences.sum())

    def audit(self, batches: Batches) -> str:
        """Digest of the sequences that all ranks read in a step. A collective."""
        return digest(sum_integers_over_ranks(sequence_sums(batches), self.device))
