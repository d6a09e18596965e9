"""From the parameters of a checkpoint to sharded safetensors, a shard at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.config.schema import Config, ModelConfig
from pretrain.errors import ExportError
from pretrain.model.decoder import Decoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES_LISTED = 5


class WeightSource(Protocol):
    """What an export reads. `pretrain.checkpoint.read.CheckpointReader` is one."""

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
        """The SentencePiece model that was saved with the run."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One whole parameter, fp32, on the CPU."""
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


def stored_tensor(source: WeightSource, name: str, dtype: torch.dtype) -> Tensor:
    """The parameter as it is written: rounded to `dtype`, contiguous.

    Raises ExportError where an element is not finite, or no longer is after rounding.
    """
    tensor = source.tensor(name)
    if tuple(tensor.shape) != tuple(source.shapes[name]):
        raise ExportError(f"{name} was read as {tuple(tensor.shape)}, its entry says {tuple(source.shapes[name])}")
    tensor = tensor.to(dtype).contiguous()
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise ExportError(
            f"{name} holds {bad} of {tensor.numel()} elements that are not finite as {dtype}",
            hint="export an earlier step with --step",
        )
    return tensor


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
    source: WeightSource, folder: Path, rename: Callable[[str], str], dtype: torch.dtype, max_shard_bytes: int
) -> WrittenWeights:
    """Write every parameter under `rename(name)`; one shard's tensors are in memory at a time.

    One file is `model.safetensors`; more are `model-00001-of-0000N.safetensors` with an index, as transformers expects.
    """
    sizes = {name: prod(shape) * dtype.itemsize for name, shape in source.shapes.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    files = tuple(_shard_names(len(shards)))
    for file, names in zip(files, shards, strict=True):
        tensors = {rename(name): stored_tensor(source, name, dtype) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        weight_map = {rename(name): file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    parameters = sum(prod(shape) for shape in source.shapes.values())
    return WrittenWeights(files, parameters, sum(sizes.values()))


def _shard_names(count: int) -> Iterator[str]:
    if count == 1:
        yield "model.safetensors"
        return
    for number in range(1, count + 1):
        yield f"model-{number:05d}-of-{count:05d}.safetensors"
