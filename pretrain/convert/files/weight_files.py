"""Conversion of a checkpoint's parameters to sharded safetensors, one tensor at a time."""

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
PROBLEMS_LISTED = 5


class WeightSource(Protocol):
    """Weights to export: a `CheckpointReader`, an `HfSource` or an `AverageSource` (see convert/weight_sources.py)."""

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
        """A parameter in fp32 on the CPU. The caller may modify it."""
        ...


@dataclass(frozen=True)
class WrittenWeights:
    """Weights in the output folder. `bytes` counts tensor data only."""

    files: tuple[str, ...]
    parameters: int
    bytes: int


def refuse_unless_complete(source: WeightSource) -> None:
    """Raise ExportError unless the parameters and their shapes are exactly those of `source.config.model`."""
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
        raise ExportError(f"the weights of step {source.step} do not fit their configuration:\n{listed(problems)}")


def listed(problems: Sequence[str]) -> str:
    """The first problems as lines of a message, and the number of the others."""
    lines = [f"  - {problem}" for problem in problems[:PROBLEMS_LISTED]]
    if len(problems) > PROBLEMS_LISTED:
        lines.append(f"  - and {len(problems) - PROBLEMS_LISTED} more")
    return "\n".join(lines)


def expected_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of the decoder, without a tied head. Allocates nothing."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Decoder(model).named_parameters()}


def rounded_parameter(source: WeightSource, name: str, dtype: torch.dtype) -> Tensor:
    """The parameter in fp32, its elements rounded to `dtype`. Raises ExportError if one is not finite after rounding."""
    tensor = source.tensor(name)
    if tuple(tensor.shape) != tuple(source.shapes[name]):
        raise ExportError(f"{name} has shape {tuple(tensor.shape)}, its entry says {tuple(source.shapes[name])}")
    return _round(tensor, name, dtype)


def stored_shape(tensor: HFTensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of a tensor of the file, from those of our parameters."""
    if tensor.fill is not None:
        return tensor.shape
    first = shapes[tensor.sources[0]]
    shape = (sum(shapes[name][0] for name in tensor.sources), *first[1:])
    return shape[::-1] if tensor.transposed else shape


def assemble(source: WeightSource, tensor: HFTensor, dtype: torch.dtype) -> Tensor:
    """A tensor of the file in fp32, its elements rounded to `dtype`. Raises ExportError as `rounded_parameter`."""
    if tensor.fill == "zeros":
        return torch.zeros(tensor.shape)
    if tensor.fill == "sinusoids":
        rows, width = tensor.shape
        return _round(sinusoidal(torch.arange(rows), width), tensor.name, dtype)
    parameters = [rounded_parameter(source, name, dtype) for name in tensor.sources]
    joined = parameters[0] if len(parameters) == 1 else torch.cat(parameters)
    return joined.t() if tensor.transposed else joined


def plan_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Names in order, split into shards of at most `max_shard_bytes`; a larger tensor gets a shard of its own."""
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
    """Write all `tensors`, with one of them in memory at a time.

    One file is named `model.safetensors`; several are `model-00001-of-0000N.safetensors` with an index, as in transformers.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    shapes = {name: stored_shape(tensor, source.shapes) for name, tensor in by_name.items()}
    sizes = {name: prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    files = tuple(_shard_names(len(shards)))
    for file, names in zip(files, shards, strict=True):
        write_tensors(
            folder / file,
            {name: shapes[name] for name in names},
            dtype,
            lambda name: assemble(source, by_name[name], dtype),
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
    """Rounds in place and in chunks: a copy of the largest tensor would double the peak memory of an export."""
    bad = 0
    for chunk in tensor.view(-1).split(CHUNK) if tensor.numel() else ():
        if dtype != torch.float32:
            chunk.copy_(chunk.to(dtype))
        bad += chunk.numel() - int(torch.isfinite(chunk).sum())
    if bad:
        raise ExportError(
            f"{name}: {bad} of {tensor.numel()} elements are not finite as {dtype}",
            hint="export an earlier step with --step",
        )
    return tensor
