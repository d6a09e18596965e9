"""run.init_from: the weights that a run starts with in place of drawn ones.

    1. check_start     before any process group: is it there, and is it this model                     no torch
    2. verify_start    on one rank, which decides for all: the folder to read, every byte of a checkpoint against its hash
    3. load_start      each rank fills the masters that it owns, whatever the ZeRO stage, a parameter at a time

It may be a run, one of its checkpoint folders, or a Hugging Face directory. The optimizer starts fresh, at step 0.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.checkpoint import layout
from pretrain.config.load import load_saved
from pretrain.config.schema import FREE_MODEL_KEYS, Config, ModelConfig
from pretrain.convert.families.choose import read_config
from pretrain.convert.files.hf_directory import CONFIG, is_hf_directory, read_json
from pretrain.convert.origin import init_checkpoint
from pretrain.errors import CheckpointError

if TYPE_CHECKING:
    from pretrain.distributed.engine import Engine


def check_start(config: Config) -> None:
    """Raise CheckpointError, with everything in which the two models differ, unless the weights fit the run."""
    path = _path(config)
    if path is None:
        return
    theirs = _model(path)
    problems = [
        f"model.{key}: {_value(theirs, key)} → {_value(config.model, key)}"
        for key in vars(config.model)
        if not _free(config.model, key) and _value(theirs, key) != _value(config.model, key)
    ]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(
            f"run.init_from={path} holds another model than this run; what would change:\n{lines}",
            hint="the model section of its config.yaml, or that which `pretrain import` writes, fits",
        )


def changed_rotation(config: Config) -> list[str]:
    """In what the rotary positions differ from those before: a longer context needs it, and by mistake it is costly."""
    path = _path(config)
    theirs = None if path is None else _model(path)
    if theirs is None or config.model.positions != "rope":
        return []
    return [
        f"model.{key}: {getattr(theirs, key)} → {value}"
        for key, value in vars(config.model).items()
        if _is_rotation(key) and value != getattr(theirs, key)
    ]


def verify_start(config: Config) -> Path | None:
    """The folder that all ranks read, None for drawn weights: a run may save another checkpoint meanwhile.

    Raises CheckpointError for a checkpoint that is damaged and for another model, DataError for a Hugging Face directory,
    which has no hashes, that lacks a tensor.
    """
    path = _path(config)
    if path is None:
        return None
    folder = path if is_hf_directory(path) else init_checkpoint(path)
    # With checkpoint.upload nobody has compared the models yet.
    check_start(replace(config, run=replace(config.run, init_from=str(folder))))
    if is_hf_directory(folder):
        from pretrain.convert.files.hf_reader import HfSource

        HfSource(folder)
    else:
        layout.verify(folder)
    return folder


def load_start(folder: Path, engine: "Engine") -> None:
    """Fill the engine's weights from the folder that `verify_start` gave. A collective."""
    from pretrain.checkpoint.checkpoint_reader import CheckpointReader
    from pretrain.convert.files.hf_reader import HfSource
    from pretrain.distributed.zero_partitions import partitions, publish_masters

    source = HfSource(folder) if is_hf_directory(folder) else CheckpointReader(folder, hashes=False)
    for part in partitions(engine):
        for fragment in part.fragments:
            target = part.flat("fp32").narrow(0, fragment.offset, fragment.numel)
            source.read(fragment.name, fragment.start, target)
    publish_masters(engine)


def _path(config: Config) -> Path | None:
    return None if config.run.init_from is None else Path(config.run.init_from)


def _model(path: Path) -> ModelConfig:
    if is_hf_directory(path):
        return read_config(read_json(path, CONFIG), str(path / CONFIG))[1].model
    folder = init_checkpoint(path)
    layout.verify(folder, hashes=False)
    return load_saved(folder / layout.CONFIG).model


def _free(model: ModelConfig, key: str) -> bool:
    """What the weights don't depend on: a table of positions has its length, a rotation has not."""
    return key in FREE_MODEL_KEYS or _is_rotation(key) or (key == "max_seq_len" and model.positions != "learned")


def _is_rotation(key: str) -> bool:
    return key.startswith("rope_") and key != "rope_fraction"


def _value(model: ModelConfig, key: str) -> object:
    """`head_dim` of 0 and the width that it stands for are the same."""
    return model.head_width if key == "head_dim" else getattr(model, key)
