"""Reads a checkpoint without an engine, one parameter at a time: for export, generation and inspection."""

from pathlib import Path

import torch

from pretrain.checkpoint import layout
from pretrain.checkpoint.pieces import PieceIndex
from pretrain.config.load import load_saved
from pretrain.errors import CheckpointError, UserError
from pretrain.model.decoder import Decoder
from pretrain.run_folder import RunFolder


class CheckpointReader:
    """A verified checkpoint, or weights-only save: configuration, shapes, and parameters on demand.

    Without `hashes`, large files are checked by size only. Raises CheckpointError if files are corrupt or missing.
    """

    def __init__(self, folder: Path, *, hashes: bool = True) -> None:
        self.folder = folder
        self.state = layout.verify(folder, hashes=hashes)
        self.step: int = self.state["step"]
        self.config = load_saved(folder / layout.CONFIG)
        with torch.device("meta"):
            model = Decoder(self.config.model)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._index = PieceIndex(layout.listed_files(folder, ".safetensors"))
        if set(self._index.names()) != set(self.shapes):
            odd = sorted(set(self._index.names()) ^ set(self.shapes))
            raise CheckpointError(f"{folder}: parameters of only the checkpoint or only the model: {', '.join(odd)}")

    @property
    def tokens(self) -> int:
        """Targets that the weights were trained on."""
        return int(self.state["tokens"])

    @property
    def tokenizer(self) -> Path | None:
        """Its tokenizer.model or tokenizer.json, for `load_tokenizer`; None if it was saved without one."""
        listed = {path.name: path for path in layout.listed_files(self.folder, "")}
        return next((listed[name] for name in layout.TOKENIZERS if name in listed), None)

    def tensor(self, name: str) -> torch.Tensor:
        """fp32 master weights of a parameter, on the CPU."""
        return self._index.read_parameter("fp32", name, self.shapes[name])

    def read(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fill the flat tensor `out` with elements of the flattened parameter from `start` on."""
        self._index.read("fp32", name, start, out)


def open_checkpoint(run_dir: Path, step: int | None = None) -> CheckpointReader:
    """Open a step of a run, by default the newest. A weights-only save serves if it has no full checkpoint.

    Raises UserError if `run_dir` does not exist, CheckpointError if the step is missing or corrupt.
    """
    if not run_dir.is_dir():
        raise UserError(f"run folder {run_dir} does not exist", hint="RUN is the run.dir of a training run")
    places = (RunFolder(run_dir).checkpoints, RunFolder(run_dir).weights)
    folder = layout.find_step(step, *places)
    try:
        return CheckpointReader(folder)
    except CheckpointError as error:
        steps = {step for place in places for step in layout.list_steps(place)}
        others = [other for other in sorted(steps) if layout.checkpoint_name(other) != folder.name]
        hint = f"another step: --step {others[-1]}" if others else None
        raise CheckpointError(error.message, hint=hint) from error
