"""Loss on held-out sequences: always the same ones, and the same number whatever the number of processes, to the last bit.

    sequences of a source   batch k holds sequences k·b … k·b + b - 1, the last one filled up with IGNORE
      → process k mod n     computes it, alone: the sums of a batch don't know how many processes there are
      → Σ over processes    of a vector with a place for each batch, which is 0 in all processes but one: exact
      → math.fsum           of all batches: rounded once, so in any order

Every process runs the same number of batches, because ZeRO-3 hangs otherwise.
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

Add = Callable[[list[float]], list[float]]  # element-wise sum over all processes, in float64
EXP_MAX = 700.0  # exp of more does not fit a float64


class BatchSums(NamedTuple):
    """Of a batch's targets: the cross-entropy in nats, and how many were predicted."""

    nats: float
    correct: float


class Score(NamedTuple):
    """Sums over held-out targets. `text_bytes` is the UTF-8 text that `text_targets` of them stand for."""

    sequences: int
    targets: int
    correct: int
    nats: float
    text_nats: float
    text_bytes: float

    @property
    def loss(self) -> float:
        """Nats a target."""
        return self.nats / self.targets

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return math.exp(self.loss) if not self.loss > EXP_MAX else math.inf

    @property
    def accuracy(self) -> float:
        """Share of targets that are the likeliest token."""
        return self.correct / self.targets

    @property
    def bits_per_byte(self) -> float | None:
        """Bits of each byte of text; None where no source knows its text."""
        return self.text_nats / math.log(2) / self.text_bytes if self.text_bytes else None


def score_sources(
    sources: Sequence[Source],
    loss: Callable[[Batch], BatchSums],
    *,
    max_sequences: int | None,
    micro_batch_size: int,
    world: World,
    add: Add,
    document_mask: bool = False,
) -> dict[str, Score]:
    """The score of each source, by name. A collective.

    The first `max_sequences / len(sources)` sequences of each are read, or all. `loss` gives the sums of a batch, with
    documents if `document_mask`.
    """
    scores = {}
    for source in sources:
        count = count_sequences(source, max_sequences, len(sources))
        scores[source.name] = _score(source, count, loss, micro_batch_size, world, add, document_mask)
    return scores


def count_sequences(source: Source, max_sequences: int | None, sources: int) -> int:
    """How many sequences of a source an evaluation of so many sources reads."""
    return len(source) if max_sequences is None else min(len(source), max(1, max_sequences // sources))


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
    """What a training writes down: over all sources, and per source as `loss/NAME` where there are several."""
    values = _values(combined_score(list(scores.values())), "")
    for name, score in scores.items() if len(scores) > 1 else []:
        values |= _values(score, f"/{name}")
    return values


def held_out_batches(
    source: Source, count: int, micro_batch_size: int, world: World, *, document_mask: bool = False
) -> Iterator[Batch]:
    """This rank's share of sequences 0 … count - 1: as many batches on every rank. Places left over have IGNORE as targets."""
    items = _held_out_tokens(source, count, micro_batch_size, world)
    for item in split_targets([source], document_mask=document_mask)(items):
        left_over = torch.from_numpy(item["sequence"] >= count)
        targets = item["targets"].masked_fill(left_over[:, None], IGNORE)
        yield Batch(item["inputs"], targets, item.get("documents"))


def _score(
    source: Source,
    count: int,
    loss: Callable[[Batch], BatchSums],
    micro_batch_size: int,
    world: World,
    add: Add,
    document_mask: bool,
) -> Score:
    nats: list[float] = []
    correct = targets = 0
    for batch in held_out_batches(source, count, micro_batch_size, world, document_mask=document_mask):
        sums = loss(batch)
        nats += [sums.nats if rank == world.rank else 0.0 for rank in range(world.size)]
        correct += int(sums.correct)
        targets += int((batch.targets != IGNORE).sum())  # fewer than seq_len a sequence where a corpus is padded
    *of_batches, all_correct, all_targets = add([*nats, correct, targets])
    total = math.fsum(of_batches)
    text_bytes = all_targets * source.bytes_per_token  # 0 of foreign shards whose text is not known
    return Score(count, int(all_targets), int(all_correct), total, total if text_bytes else 0.0, text_bytes)


def _values(score: Score, of: str) -> dict[str, float]:
    values = {f"loss{of}": score.loss}
    if score.bits_per_byte is not None:
        values[f"bits_per_byte{of}"] = score.bits_per_byte
    return {**values, f"accuracy{of}": score.accuracy}


def _held_out_tokens(source: Source, count: int, micro_batch_size: int, world: World) -> Iterator[Item]:
    for start in range(0, count, micro_batch_size * world.size):
        sequences = start + world.rank * micro_batch_size + np.arange(micro_batch_size)
        tokens = np.zeros((micro_batch_size, source.seq_len + 1), dtype=np.int64)
        source.read(sequences[sequences < count], tokens)
        yield {"source": np.zeros(micro_batch_size, dtype=np.int64), "sequence": sequences, "tokens": tokens}
