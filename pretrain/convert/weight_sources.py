"""Weights wherever they lie: a run of ours, one of its checkpoints, or a Hugging Face directory.

What generates, evaluates, inspects or exports asks here.
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
    """The newest checkpoint of a run, or that of a step; else the checkpoint folder or Hugging Face directory itself.

    Raises UserError for what is none of these, CheckpointError for damaged checkpoints, DataError for a directory whose
    model the decoder cannot hold.
    """
    if is_hf_directory(path):
        _refuse_step(path, step, "a Hugging Face directory")
        return HfSource(path)
    if layout.parse_name(path.name) is not None and (path / layout.MANIFEST).is_file():
        _refuse_step(path, step, "one checkpoint")
        return CheckpointReader(path)
    return open_checkpoint(path, step)


def load_decoder(source: WeightSource) -> Decoder:
    """The whole model in fp32 on the CPU, ready to run."""
    model = Decoder(source.config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(source.tensor(name))
    return model.eval()


def load_finite(source: WeightSource, path: Path | str) -> Decoder:
    """`load_decoder`. Raises UserError for weights that are not finite."""
    model = load_decoder(source)
    broken = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
    if broken is None:
        return model
    ours = isinstance(source, CheckpointReader)
    raise UserError(
        f"{path}: {broken}{f' of step {source.step}' if ours else ''} holds numbers that are not finite",
        hint="an earlier --step" if ours else None,
    )


def _refuse_step(path: Path, step: int | None, what: str) -> None:
    if step is not None:
        raise UserError(f"step {step}: {path} is {what}, and has no other steps")
