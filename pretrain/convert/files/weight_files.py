"""From the parameters of a checkpoint to sharded safetensors, a tensor at a time."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pretrain.config.schema import Config, ModelConfig
from pretrain.convert.families.family import HFTensor
from pretrain.errors import ExportError
from pretrain.model.decoder import Decoder
from pretrain.model.positions import sinusoidal
from pretrain.storage.safetensors import CHUNK, write_tensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INDEX = "model.safetensors.index.json"
NAMES_LISTED = 5


class WeightSource(Protocol):
    """What an export reads. `pretrain.checkpoint.checkpoint_reader.CheckpointReader` is one; sources.py has the others."""

    @property
    def config(self) -> Config:
        """The resolved configuration of the run."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps behind these weights."""
        ...

    @property
    def tokens(self) -> int:
        """Targets behind these weights."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each parameter of the decoder, by its name."""
        ...

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer that was saved with the run."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One whole parameter, fp32, on the CPU. It is the caller's to change."""
        ...


@dataclass(frozen=True)
class WrittenWeights:
    """What lies in the output folder. `bytes` counts tensor data only."""

    files: tuple[str, ...]
    parameters: int
    bytes: int


def refuse_unless_complete(source: WeightSource) -> None:
    """Raise ExportError where the parameters and their shapes are not exactly those of `source.config.model`."""
    expected, found = expected_shapes(source.config.model), {name: tuple(s) for name, s in source.shapes.items()}
    problems = [
        *(f"missing: {name} {shape}" for name, shape in expected.items() if name not in found),
        *(f"not in the model: {name} {shape}" for name, shape in found.items() if name not in expected),
        *(
            f"{name} is {found[name]}, the configuration says {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ),
    ]
    if problems:
        more = f"\n  - and {len(problems) - NAMES_LISTED} more" if len(problems) > NAMES_LISTED else ""
        listed = "\n".join(f"  - {problem}" for problem in problems[:NAMES_LISTED])
        raise ExportError(f"the weights of step {source.step} do not fit their configuration:\n{listed}{more}")


def expected_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter that the decoder of `model` has; a tied head is not listed. Allocates nothing."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Decoder(model).named_parameters()}


def rounded_parameter(source: WeightSource, name: str, dtype: torch.dtype) -> Tensor:
    """The parameter in fp32, its elements rounded to those that `dtype` has.

    Raises ExportError where an element is not finite, or no longer is after rounding.
    """
    tensor = source.tensor(name)
    if tuple(tensor.shape) != tuple(source.shapes[name]):
        raise ExportError(f"{name} was read as {tuple(tensor.shape)}, its entry says {tuple(source.shapes[name])}")
    return _round(tensor, name, dtype)


def stored_shape(stored: HFTensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of a tensor of the file, from those of our parameters."""
    if stored.fill is not None:
        return stored.shape
    first = shapes[stored.parts[0]]
    shape = (sum(shapes[part][0] for part in stored.parts), *first[1:])
    return shape[::-1] if stored.transposed else shape


def assemble(source: WeightSource, stored: HFTensor, dtype: torch.dtype) -> Tensor:
    """A tensor of the file in fp32, its elements rounded to `dtype`. Raises ExportError as `rounded_parameter`."""
    if stored.fill == "zeros":
        return torch.zeros(stored.shape)
    if stored.fill == "sinusoids":
        rows, width = stored.shape
        return _round(sinusoidal(torch.arange(rows), width), stored.name, dtype)
    parts = [rounded_parameter(source, part, dtype) for part in stored.parts]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.t() if stored.transposed else whole


def plan_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Names in their order, cut into shards of at most `max_shard_bytes`; a tensor larger than that has its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_weights(
    source: WeightSource, folder: Path, tensors: Sequence[HFTensor], dtype: torch.dtype, max_shard_bytes: int
) -> WrittenWeights:
    """Write every tensor of the family; one of them is in memory at a time.

    One file is `model.safetensors`; more are `model-00001-of-0000N.safetensors` with an index, as transformers expects.
    """
    table = {stored.name: stored for stored in tensors}
    shapes = {name: stored_shape(stored, source.shapes) for name, stored in table.items()}
    sizes = {name: prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    files = tuple(_shard_names(len(shards)))
    for file, names in zip(files, shards, strict=True):
        write_tensors(
            folder / file,
            {name: shapes[name] for name in names},
            dtype,
            lambda name: assemble(source, table[name], dtype),
        )
    if len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    parameters = sum(prod(shape) for shape in source.shapes.values())
    return WrittenWeights(files, parameters, sum(sizes.values()))


def _shard_names(count: int) -> Iterator[str]:
    if count == 1:
        yield "model.safetensors"
        return
    for number in range(1, count + 1):
        yield f"model-{number:05d}-of-{count:05d}.safetensors"


def _round(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """In place, and in chunks: a copy of the largest tensor would be what the memory of an export is made of."""
    bad = 0
    for chunk in tensor.view(-1).split(CHUNK) if tensor.numel() else ():
        if dtype != torch.float32:
            chunk.copy_(chunk.to(dtype))
        bad += chunk.numel() - int(torch.isfinite(chunk).sum())
    if bad:
        raise ExportError(
            f"{name} holds {bad} of {tensor.numel()} elements that are not finite as {dtype}",
            hint="export an earlier step with --step",
        )
    return tensor
