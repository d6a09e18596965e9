"""Our stream, and the ways of reading that a person writes with NumPy and webdataset."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch import Tensor

from benchmarks.loader.corpora import Ids, read_plain
from pretrain.config.schema import BatchConfig, DataConfig, SourceConfig
from pretrain.data.loader import Position, build_stream
from pretrain.data.order import Order, Stage
from pretrain.data.source import open_sources
from pretrain.distributed.world import World

Batches = Iterator[tuple[Tensor, Tensor]]


def ours(folder: Path, batch: int, seq_len: int, *, start: int, prefetch: int) -> Iterator[dict[str, Any]]:
    """The whole stream as the trainer builds it, opened at batch `start`."""
    data = DataConfig(train={"corpus": SourceConfig(path=str(folder))}, seq_len=seq_len, prefetch_batches=prefetch)
    sources = open_sources(data.train, seq_len, data.store)
    order = Order(
        [source.ordered() for source in sources],
        [Stage(0, {"corpus": 1.0})],
        seq_len=seq_len,
        seed=data.seed,
        lanes=data.lanes,
        span=data.span,
    )
    sizes = BatchConfig(global_batch_size=batch, micro_batch_size=batch)
    return iter(build_stream(order, sources, sizes, World(), Position(start, start * batch), data))


def ours_pairs(folder: Path, batch: int, seq_len: int, *, start: int, prefetch: int = 0) -> Batches:
    for item in ours(folder, batch, seq_len, start=start, prefetch=prefetch):
        yield item["inputs"], item["targets"]


def ours_contiguous(folder: Path, batch: int, seq_len: int, *, start: int) -> Batches:
    """Inputs and targets that share no memory: what a loop without views would be given."""
    for item in ours(folder, batch, seq_len, start=start, prefetch=0):
        yield item["inputs"].contiguous(), item["targets"].contiguous()


def nanogpt(folder: Path, batch: int, seq_len: int, *, map_again: bool) -> Batches:
    """`get_batch` of karpathy/nanoGPT's train.py: random windows of a memory map, which it maps again for each batch."""
    data = np.memmap(folder / "train.bin", np.uint16, "r")
    while True:
        if map_again:
            data = np.memmap(folder / "train.bin", np.uint16, "r")
        ix = torch.randint(len(data) - seq_len, (batch,))
        x = torch.stack([torch.from_numpy(data[i : i + seq_len].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + seq_len].astype(np.int64)) for i in ix])
        yield x, y


class SampleMap(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Megatron-LM's GPTDataset: document, sample and shuffle index, kept in files and mapped when a run starts."""

    def __init__(self, folder: Path, seq_len: int, cache: Path) -> None:
        self.ids, ends = read_plain(folder)
        self.starts, self.lengths = np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0)
        self.seq_len = seq_len
        if not (cache / "shuffle.npy").exists():
            self._build(cache)
        self.documents, self.samples, self.shuffle = (
            np.load(cache / f"{name}.npy", mmap_mode="r") for name in ("documents", "samples", "shuffle")
        )

    def _build(self, cache: Path) -> None:
        random = np.random.default_rng(0)
        documents = random.permutation(len(self.lengths)).astype(np.int32)
        ends = np.cumsum(self.lengths[documents])
        first = np.arange(0, ends[-1] - self.seq_len, self.seq_len)  # of each sample, in the shuffled documents
        place = np.searchsorted(ends, first, side="right")
        offset = first - np.where(place > 0, ends[place - 1], 0)
        cache.mkdir(parents=True, exist_ok=True)
        np.save(cache / "documents.npy", documents)
        np.save(cache / "samples.npy", np.stack([place, offset], axis=1).astype(np.int32))
        np.save(cache / "shuffle.npy", random.permutation(len(first) - 1).astype(np.uint32))

    def __len__(self) -> int:
        return len(self.shuffle)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        sample = self.shuffle[number]
        (first, offset), (last, end) = self.samples[sample], self.samples[sample + 1]
        parts = []
        for place in range(first, last + 1):
            document = self.documents[place]
            begin = offset if place == first else 0
            stop = end + 1 if place == last else self.lengths[document]
            parts.append(self.ids[self.starts[document] + begin : self.starts[document] + stop])
        text = torch.from_numpy(np.concatenate(parts)).long()
        return text[:-1].contiguous(), text[1:].contiguous()


def sample_map(folder: Path, cache: Path, batch: int, seq_len: int, *, start: int) -> Batches:
    """One sample at a time by torch's DataLoader, resumed by a batch sampler that begins later, as Megatron's does."""
    dataset = SampleMap(folder, seq_len, cache)
    batches = [list(range(first, first + batch)) for first in range(start * batch, len(dataset) - batch + 1, batch)]
    yield from torch.utils.data.DataLoader(dataset, batch_sampler=batches)


def cut_rows(pieces: Iterator[Ids], length: int) -> Iterator[Ids]:
    """Rows of `length` out of pieces of any length; a row's last id is the next one's first."""
    rest = np.empty(0, np.uint16)
    for piece in pieces:
        rest = np.concatenate([rest, piece])
        used = 0
        while len(rest) - used >= length:
            yield rest[used : used + length]
            used += length - 1
        rest = rest[used:]


def to_batches(rows: Iterator[Ids], batch: int) -> Batches:
    """Stacked rows as int64 tensors."""
    while len(group := [row for _, row in zip(range(batch), rows, strict=False)]) == batch:
        tokens = torch.from_numpy(np.stack(group).astype(np.int64))
        yield tokens[:, :-1], tokens[:, 1:]


def webdataset_blocks(folder: Path, batch: int, seq_len: int, *, start: int) -> Batches:
    """Our tars read by webdataset as they are, blocks cut into rows, which a buffer shuffles. Resuming reads from the start."""
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode().to_tuple("tok.npy")
    rows = (row for (block,) in dataset for row in cut_rows(iter([block]), seq_len + 1))
    yield from skip(to_batches(webdataset.shuffle(1_000)(rows), batch), start)


def webdataset_documents(folder: Path, batch: int, seq_len: int, *, start: int, workers: int = 0) -> Batches:
    """A sample a document, shuffled in a buffer and packed in Python. Resuming reads what came before."""
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    split = webdataset.split_by_worker
    dataset = webdataset.WebDataset(tars, shardshuffle=False, workersplitter=split).shuffle(1_000)
    documents = dataset.decode().to_tuple("npy")
    packed = webdataset.DataPipeline(documents, lambda items: cut_rows((ids for (ids,) in items), seq_len + 1))
    batches = webdataset.DataPipeline(packed, lambda rows: to_batches(rows, batch))
    yield from skip(iter(webdataset.WebLoader(batches, num_workers=workers, batch_size=None)), start)


def skip(batches: Batches, count: int) -> Batches:
    for _ in range(count):
        next(batches)
    return batches
