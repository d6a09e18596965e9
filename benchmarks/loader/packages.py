"""Loaders of other packages, each as its documentation shows it: HF datasets, Mosaic Streaming, Megatron-Energon."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.loader.simple import Batches


def arrow_map(folder: Path, batch: int, *, start: int, workers: int = 0) -> Batches:
    """datasets, map-style: a shuffled table; resuming is a range of it."""
    from datasets import load_from_disk

    table = load_from_disk(folder).shuffle(seed=0)
    table = table.select(range(start * batch, len(table))).with_format("torch")
    for item in DataLoader(table, batch_size=batch, num_workers=workers, drop_last=True):
        yield item["tokens"][:, :-1], item["tokens"][:, 1:]


def arrow_streaming(folder: Path, batch: int, *, state: dict[str, Any] | None = None) -> Batches:
    """datasets, streaming with a buffer that shuffles; resuming is its `load_state_dict`."""
    for item in DataLoader(_arrow_stream(folder, state), batch_size=batch, drop_last=True):
        yield item["tokens"][:, :-1], item["tokens"][:, 1:]


def _arrow_stream(folder: Path, state: dict[str, Any] | None) -> Any:
    from datasets import load_from_disk

    stream = load_from_disk(folder).to_iterable_dataset(num_shards=16).with_format("torch")
    stream = stream.shuffle(seed=0, buffer_size=1_000)
    if state is not None:
        stream.load_state_dict(state)
    return stream


def arrow_state(folder: Path, batch: int, start: int) -> dict[str, Any]:
    """Content of a checkpoint at batch `start`."""
    stream = _arrow_stream(folder, None)
    for _ in zip(range(start * batch), stream, strict=False):
        pass
    return stream.state_dict()


def mosaic(folder: Path, batch: int, *, start: int) -> Batches:
    """Mosaic Streaming: MDS, shuffled; resuming is its `load_state_dict`."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch)
    if start:
        dataset.load_state_dict(dataset.state_dict(start * batch, from_beginning=True))
    rows = (sample["tokens"].astype(np.int64) for sample in iter(dataset))
    while len(group := [row for _, row in zip(range(batch), rows, strict=False)]) == batch:
        tokens = torch.from_numpy(np.stack(group))
        yield tokens[:, :-1], tokens[:, 1:]


def energon(folder: Path, batch: int, *, workers: int = 0, state: Any = None) -> Batches:
    """Megatron-Energon: rows, shuffled; resuming is its `restore_state_rank`."""
    loader = _energon_loader(folder, batch, workers)
    if state is not None:
        loader.restore_state_rank(state)
    for item in loader:
        yield item.tokens[:, :-1], item.tokens[:, 1:]


def energon_state(folder: Path, batch: int, start: int) -> Any:
    """Content of a checkpoint at batch `start`."""
    loader = _energon_loader(folder, batch, 0)
    for _ in zip(range(start), loader, strict=False):
        pass
    return loader.save_state_rank()


def _energon_loader(folder: Path, batch: int, workers: int) -> Any:
    from megatron import energon

    @energon.edataclass
    class Row(energon.Sample):
        tokens: torch.Tensor

    @energon.stateless
    def cook(sample: dict[str, Any]) -> Row:
        return Row(**energon.basic_sample_keys(sample), tokens=torch.from_numpy(sample["npy"].astype(np.int64)))

    class Encoder(energon.DefaultTaskEncoder):
        cookers = (energon.Cooker(cook),)

    dataset = energon.get_train_dataset(
        folder,
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=batch,
        shuffle_buffer_size=1_000,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
    )
    return energon.get_savable_loader(dataset)
