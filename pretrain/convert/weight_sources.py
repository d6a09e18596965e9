"""Opening weights: of a run, of one of its checkpoints, or of a Hugging Face directory.

Used by export, generation, evaluation and inspection.
"""

from pathlib import Path

import torch

from pretrain.checkpoint import layout
from pretrain.checkpoint.checkpoint_reader import CheckpointReader, open_checkpoint
from pretrain.convert.files.hf_directory import is_hf_directory
from pretrain.convert.files.hf_reader import HfSource
from pretrain.convert.files.weight_files import WeightSource
from pretrain.errors import UserError
from pretrain.model.decoder import Decoder


def open_weights(path: Path, step: int | None = None) -> WeightSource:
    """The newest checkpoint of a run, or that of `step`; else the checkpoint folder or Hugging Face directory itself.

    Raises UserError if `path` is none of these, CheckpointError if the checkpoint is corrupt, DataError if the decoder
    cannot compute the directory's model.
    """
    if is_hf_directory(path):
        _refuse_step(path, step, "a Hugging Face directory")
        return HfSource(path)
    if layout.parse_name(path.name) is not None and (path / layout.MANIFEST).is_file():
        _refuse_step(path, step, "one checkpoint")
        return CheckpointReader(path)
    return open_checkpoint(path, step)


def load_decoder(source: WeightSource) -> Decoder:
    """The model in fp32 on the CPU, in eval mode."""
    model = Decoder(source.config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(source.tensor(name))
    return model.eval()


def load_finite(source: WeightSource, path: Path | str) -> Decoder:
    """`load_decoder`. Raises UserError if a weight is not finite."""
    model = load_decoder(source)
    broken = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
    if broken is None:
        return model
    is_checkpoint = isinstance(source, CheckpointReader)
    raise UserError(
        f"{path}: {broken}{f' of step {source.step}' if is_checkpoint else ''} holds numbers that are not finite",
        hint="choose an earlier step: --step N" if is_checkpoint else None,
    )


def _refuse_step(path: Path, step: int | None, what: str) -> None:
    if step is not None:
        raise UserError(f"step {step}: {path} is {what}, which has no other steps")
