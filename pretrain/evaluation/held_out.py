"""Held-out loss: on the same sequences each time, and bitwise equal for any number of processes.

    sequences of a source   then its tails, which are shorter (data/source.py), padded with IGNORE
      → batch k             has numbers k·b … k·b + b - 1; the last batch is padded with IGNORE
      → process k mod n     computes batch k alone: its sums do not depend on n
      → all-reduce          of a vector with one element per batch, 0 in all processes but one: exact
      → math.fsum           over all batches: rounded once, so independent of the order

Every process runs the same number of batches, or ZeRO-3 would hang.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from pretrain.data.loader import Item, split_targets
from pretrain.data.source import Source
from pretrain.distributed.engine import Batch
from pretrain.distributed.world import World
from pretrain.model.loss import IGNORE

# Element-wise sum over all processes, in float64.
AllReduce = Callable[[list[float]], list[float]]
EXP_MAX = 700.0  # math.exp overflows a float64 above 709


class BatchSums(NamedTuple):
    """Sums over the targets of a batch: cross-entropy in nats, and correct predictions."""

    nats: float
    correct: float


class Score(NamedTuple):
    """Sums over held-out targets.

    `text_nats` and `text_bytes` (of UTF-8) cover the sources whose text size is known.
    """

    sequences: int
    targets: int
    correct: int
    nats: float
    text_nats: float
    text_bytes: float

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nats / self.targets

    @property
    def perplexity(self) -> float:
        """exp(loss), per token."""
        return math.exp(self.loss) if not self.loss > EXP_MAX else math.inf

    @property
    def accuracy(self) -> float:
        """Share of targets that are the most likely token."""
        return self.correct / self.targets

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text; None if no source knows its text size."""
        return self.text_nats / math.log(2) / self.text_bytes if self.text_bytes else None


def score_sources(
    sources: Sequence[Source],
    loss: Callable[[Batch], BatchSums],
    *,
    max_sequences: int | None,
    micro_batch_size: int,
    world: World,
    add: AllReduce,
    document_mask: bool = False,
) -> dict[str, Score]:
    """The score of each source, by name. A collective.

    The first `max_sequences / len(sources)` sequences of each are read, or all; tails are the last ones. `loss` gives the
    sums of a batch, with documents if `document_mask`.
    """
    scores = {}
    for source in sources:
        count = count_sequences(source, max_sequences, len(sources))
        scores[source.name] = _score(source, count, loss, micro_batch_size, world, add, document_mask)
    return scores


def count_sequences(source: Source, max_sequences: int | None, sources: int) -> int:
    """Number of sequences, tails included, that an evaluation of `sources` sources reads from this one."""
    every = len(source) + len(source.tails)
    return every if max_sequences is None else min(every, max(1, max_sequences // sources))


def combined_score(scores: Sequence[Score]) -> Score:
    """The score over all targets of several sources."""
    return Score(
        sum(score.sequences for score in scores),
        sum(score.targets for score in scores),
        sum(score.correct for score in scores),
        math.fsum(score.nats for score in scores),
        math.fsum(score.text_nats for score in scores),
        math.fsum(score.text_bytes for score in scores),
    )


def evaluation_values(scores: dict[str, Score]) -> dict[str, float]:
    """Metrics for the log of a run: over all sources, and per source as `loss/NAME` if there are several."""
    values = _values(combined_score(list(scores.values())), "")
    for name, score in scores.items() if len(scores) > 1 else []:
        values |= _values(score, f"/{name}")
    return values


def held_out_batches(
    source: Source, count: int, micro_batch_size: int, world: World, *, document_mask: bool = False
) -> Iterator[Batch]:
    """This rank's share of sequences 0 … count - 1; every rank gets the same number of batches.

    Numbers from len(source) on are its tails. Padding, of rows and of tails, has IGNORE as targets.
    """
    items = _held_out_tokens(source, count, micro_batch_size, world)
    for item in split_targets([source], document_mask=document_mask)(items):
        is_padding = torch.arange(source.seq_len) >= torch.from_numpy(item["lengths"])[:, None]
        targets = item["targets"].masked_fill(is_padding, IGNORE)
        yield Batch(item["inputs"], targets, item.get("documents"))


def _score(
    source: Source,
    count: int,
    loss: Callable[[Batch], BatchSums],
    micro_batch_size: int,
    world: World,
    add: AllReduce,
    document_mask: bool,
) -> Score:
    nats: list[float] = []
    correct = targets = 0
    for batch in held_out_batches(source, count, micro_batch_size, world, document_mask=document_mask):
        sums = loss(batch)
        nats += [sums.nats if rank == world.rank else 0.0 for rank in range(world.size)]
        correct += int(sums.correct)
        targets += int((batch.targets != IGNORE).sum())  # packed corpora have padding
    *batch_nats, all_correct, all_targets = add([*nats, correct, targets])
    total = math.fsum(batch_nats)
    text_bytes = all_targets * source.bytes_per_token  # 0 for foreign shards of unknown text size
    return Score(count, int(all_targets), int(all_correct), total, total if text_bytes else 0.0, text_bytes)


def _values(score: Score, suffix: str) -> dict[str, float]:
    values = {f"loss{suffix}": score.loss}
    if score.bits_per_byte is not None:
        values[f"bits_per_byte{suffix}"] = score.bits_per_byte
    return {**values, f"accuracy{suffix}": score.accuracy}


def _held_out_tokens(source: Source, count: int, micro_batch_size: int, world: World) -> Iterator[Item]:
    for start in range(0, count, micro_batch_size * world.size):
        sequences = start + world.rank * micro_batch_size + np.arange(micro_batch_size)
        tokens = np.zeros((micro_batch_size, source.seq_len + 1), dtype=np.int64)
        lengths = np.where(sequences < min(count, len(source)), source.seq_len, 0)  # targets of each row
        source.read(sequences[lengths > 0], tokens)
        for row in np.flatnonzero((sequences >= len(source)) & (sequences < count)):
            lengths[row] = source.read_tail(int(sequences[row]) - len(source), tokens[row])
        numbers = np.zeros(micro_batch_size, dtype=np.int64)
        yield {"source": numbers, "sequence": sequences, "tokens": tokens, "lengths": lengths}
