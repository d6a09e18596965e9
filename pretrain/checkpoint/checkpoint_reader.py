"""Reading a checkpoint without an engine: for export, generation and inspection. One parameter at a time."""

from pathlib import Path

import torch

from pretrain.checkpoint import layout
from pretrain.checkpoint.pieces import PieceIndex
from pretrain.config.load import load_saved
from pretrain.errors import CheckpointError, UserError
from pretrain.model.decoder import Decoder
from pretrain.run_folder import RunFolder


class CheckpointReader:
    """A verified checkpoint: its configuration, the shape of each parameter, and each parameter on demand.

    A save of the weights alone will do: nothing but these is read. Without `hashes`, large files are verified by size only.
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
            raise CheckpointError(
                f"{folder}: parameters that only the checkpoint or only the model has: {', '.join(odd)}"
            )

    @property
    def tokens(self) -> int:
        """Targets that it was trained on."""
        return int(self.state["tokens"])

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer that was saved with it, a tokenizer.model or a tokenizer.json; `codec.load_codec` opens it."""
        listed = {path.name: path for path in layout.listed_files(self.folder, "")}
        return next((listed[name] for name in layout.TOKENIZERS if name in listed), None)

    def tensor(self, name: str) -> torch.Tensor:
        """The fp32 master weights of a parameter, on the CPU."""
        return self._index.read_parameter("fp32", name, self.shapes[name])

    def read(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fill the flat fp32 tensor `out` with a parameter's elements from `start` on."""
        self._index.read("fp32", name, start, out)


def open_checkpoint(run_dir: Path, step: int | None = None) -> CheckpointReader:
    """The newest checkpoint of a run, or that of a step; a save of the weights alone is as good, where there is no other.

    Raises UserError for what is not a run, and CheckpointError for a step that is missing or damaged.
    """
    if not run_dir.is_dir():
        raise UserError(f"run folder {run_dir} does not exist", hint="it is the run.dir of a training")
    places = (RunFolder(run_dir).checkpoints, RunFolder(run_dir).weights)
    folder = layout.find_step(step, *places)
    try:
        return CheckpointReader(folder)
    except CheckpointError as error:
        steps = {step for place in places for step in layout.list_steps(place)}
        others = [other for other in sorted(steps) if layout.checkpoint_name(other) != folder.name]
        hint = f"--step {others[-1]} takes another one" if others else None
        raise CheckpointError(error.message, hint=hint) from error
