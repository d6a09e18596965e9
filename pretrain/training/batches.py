"""What a trainer is fed: the micro-batches of each step, wherever the run stands, and the account of what was read."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NoReturn

import torch

from pretrain.data.audit import digest, sequence_sums
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
    """This rank's stream. It is built anew, which costs nothing, whenever the run does not stand where it left off."""

    def __init__(self, data: OpenedData, world: World, device: torch.device) -> None:
        self.data, self.world, self.device = data, world, device
        self.order: Order
        self.problem: PretrainError | None = None  # why the batches that were asked for are not there
        self._stream: Any = None
        self._behind: tuple[int, int] | None = None  # step and samples at which the next batches begin

    def plan(self, state: dict[str, Any] | None, jumps: Sequence[SkippedRange]) -> None:
        """Order everything for a run that goes on from the state of a checkpoint, or from the beginning."""
        self.order = self.data.order(state, jumps)
        self._stream = None

    def next(self, progress: Progress) -> Batches:
        """The micro-batches of the step after `progress`; none where they cannot be read, and `problem` says why.

        It is not raised here: the others are about to wait for this rank, and must learn of it first.
        """
        config = self.data.config
        if self._stream is None or self._behind != (progress.step, progress.samples):
            self._stream = iter(
                build_stream(
                    self.order,
                    self.data.train,
                    config.batch,
                    self.world,
                    Position(progress.step, progress.samples),
                    config.data,
                    pin=self.device.type == "cuda",
                )
            )
        size = batch_size(progress.step, config.batch)
        self._behind = progress.step + 1, progress.samples + size
        try:
            return list(islice(self._stream, size // self.world.size // config.batch.micro_batch_size))
        except PretrainError as error:
            self.problem = error
            return []

    def give_up(self) -> NoReturn:
        """Raise the problem of whichever rank has one, on every rank. A collective."""
        problem: PretrainError = next(found for found in gather_to_all(self.problem) if found is not None)
        problem.everywhere = True
        raise problem

    def ledger(self, samples: int) -> dict[str, dict[str, float]]:
        """What has been read of each source before a sample: tokens, and epochs."""
        return {
            source.name: {"tokens": int(count) * self.order.seq_len, "epochs": int(count) / source.sequences}
            for source, count in zip(self.order.sources, self.order.counts(samples), strict=True)
        }

    def epochs(self, samples: int) -> float:
        """Samples as a multiple of all sequences of all sources."""
        return float(samples / self.order.sequences.sum())

    def audit(self, batches: Batches) -> str:
        """The digest of what all ranks were given in a step. A collective."""
        return digest(sum_integers_over_ranks(sequence_sums(batches), self.device))
