"""Weight averaging over several checkpoints; near the end of a run the mean is often better than each of them.

Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", https://arxiv.org/abs/1803.05407.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint import layout
from pretrain.checkpoint.checkpoint_reader import CheckpointReader, open_checkpoint
from pretrain.config.schema import FREE_MODEL_KEYS, Config
from pretrain.convert.files.hf_directory import is_hf_directory
from pretrain.errors import CheckpointError, UserError
from pretrain.run_folder import RunFolder
from pretrain.storage.safetensors import CHUNK


class AverageSource:
    """A WeightSource over checkpoints of one run, oldest first. All but the weights is the newest checkpoint's."""

    def __init__(self, readers: Sequence[CheckpointReader]) -> None:
        self._readers, self._newest = list(readers), readers[-1]
        self.averaged = tuple(reader.step for reader in readers)
        for reader in readers:
            self._refuse_if_changed(reader)

    @property
    def config(self) -> Config:
        """Configuration of the newest checkpoint."""
        return self._newest.config

    @property
    def step(self) -> int:
        """Step of the newest checkpoint."""
        return self._newest.step

    @property
    def tokens(self) -> int:
        """Targets behind the newest checkpoint."""
        return self._newest.tokens

    @property
    def state(self) -> dict[str, Any]:
        """State of the newest checkpoint."""
        return self._newest.state

    @property
    def folder(self) -> Path:
        """Folder of the newest checkpoint."""
        return self._newest.folder

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes, equal in all checkpoints."""
        return self._newest.shapes

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer, equal in all checkpoints."""
        return self._newest.tokenizer

    def tensor(self, name: str) -> Tensor:
        """Mean of a parameter: summed in fp64 from the oldest, rounded once to fp32."""
        out = torch.empty(self.shapes[name])
        flat, start = out.view(-1), 0
        for part in flat.split(CHUNK):
            total = torch.zeros(part.shape, dtype=torch.float64)
            for reader in self._readers:
                reader.read(name, start, part)
                total += part
            part.copy_(total / len(self._readers))
            start += part.numel()
        return out

    def _refuse_if_changed(self, reader: CheckpointReader) -> None:
        ours, theirs = vars(self._newest.config.model), vars(reader.config.model)
        changed = [
            f"model.{key}: {theirs[key]} → {value}"
            for key, value in ours.items()
            if key not in FREE_MODEL_KEYS and theirs[key] != value
        ]
        if _digest(reader.tokenizer) != _digest(self._newest.tokenizer):
            changed.append("the tokenizer")
        if changed:
            raise CheckpointError(
                f"steps {reader.step} and {self.step} cannot be averaged, they differ in {', '.join(changed)}",
                hint="average fewer checkpoints: a smaller --average N",
            )


def open_average(run: Path, count: int, step: int | None = None) -> AverageSource:
    """The newest `count` checkpoints of a run, including weights-only ones; with `step`, the newest up to it.

    Raises UserError if `run` is not a run, CheckpointError if it has fewer, one is corrupt, or their models differ.
    """
    if is_hf_directory(run) or (run / layout.MANIFEST).is_file():
        raise UserError(f"--average {count}: {run} is not a run and has a single step")
    newest = open_checkpoint(run, step)
    places = (RunFolder(run).checkpoints, RunFolder(run).weights)
    steps = sorted({saved for place in places for saved in layout.list_steps(place) if saved <= newest.step})
    if len(steps) < count:
        upto = "" if step is None else f" up to step {step}"
        raise CheckpointError(
            f"--average {count}: {run} has {len(steps)} checkpoints{upto}: {', '.join(map(str, steps))}",
            hint="to have more, raise checkpoint.keep_last or set checkpoint.weights_every_steps",
        )
    chosen = steps[-count:]
    return AverageSource([*(CheckpointReader(layout.find_step(saved, *places)) for saved in chosen[:-1]), newest])


def _digest(tokenizer: Path | None) -> str | None:
    return None if tokenizer is None else hashlib.sha256(tokenizer.read_bytes()).hexdigest()
