"""Initial weights of a run (`run.init_from`), instead of random initialization.

They come from a run, one of its checkpoint folders, or a Hugging Face directory. The optimizer starts fresh, at step 0.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.checkpoint import layout
from pretrain.config.load import load_saved
from pretrain.config.schema import FREE, Config, ModelConfig
from pretrain.convert.families.choose import read_config
from pretrain.convert.files.hf_directory import CONFIG, is_hf_directory, read_json
from pretrain.convert.origin import init_checkpoint
from pretrain.errors import CheckpointError

if TYPE_CHECKING:
    from pretrain.distributed.engine import Engine


def find_initial_weights(config: Config, *, hashes: bool) -> Path | None:
    """The folder that run.init_from stands for; None for random initialization.

    With `hashes`, every byte of a checkpoint is compared with its hash; a Hugging Face directory has none, and must hold
    every tensor. Raises CheckpointError for a corrupt checkpoint and for another model, DataError for a missing tensor.
    """
    if config.run.init_from is None:
        return None
    path = Path(config.run.init_from)
    # Resolved once: a run that is named here may save another checkpoint meanwhile.
    folder = path if is_hf_directory(path) else init_checkpoint(path)
    _check_model(config, folder)
    if not hashes:
        return folder
    if is_hf_directory(folder):
        from pretrain.convert.files.hf_reader import HfSource

        HfSource(folder)
    else:
        layout.verify(folder)
    return folder


def changed_rotation(config: Config, initial_weights: Path | None) -> list[str]:
    """Differences in rotary positions, to be logged: a longer context needs them, and by mistake they are costly."""
    if initial_weights is None or config.model.positions != "rope":
        return []
    theirs = _model(initial_weights)
    return [
        f"model.{key}: {getattr(theirs, key)} → {value}"
        for key, value in vars(config.model).items()
        if _is_rotation(key) and value != getattr(theirs, key)
    ]


def _check_model(config: Config, folder: Path) -> None:
    """Raise CheckpointError with every difference unless the weights in `folder` fit the model of the run."""
    theirs = _model(folder)
    problems = [
        f"model.{key}: {_value(theirs, key)} → {_value(config.model, key)}"
        for key in vars(config.model)
        if not _free(config.model, key) and _value(theirs, key) != _value(config.model, key)
    ]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(
            f"run.init_from={config.run.init_from} holds a different model than this run; differences:\n{lines}",
            hint="use the model section of its config.yaml, or of the one that `pretrain import` writes",
        )


def load_initial_weights(folder: Path, engine: "Engine") -> None:
    """Fill the engine's weights from a folder that `find_initial_weights` returned, one parameter at a time. A collective."""
    from pretrain.checkpoint.checkpoint_reader import CheckpointReader
    from pretrain.convert.files.hf_reader import HfSource
    from pretrain.distributed.zero_partitions import partitions, publish_masters

    source = HfSource(folder) if is_hf_directory(folder) else CheckpointReader(folder, hashes=False)
    for part in partitions(engine):
        for fragment in part.fragments:
            target = part.flat("fp32").narrow(0, fragment.offset, fragment.numel)
            source.read(fragment.name, fragment.start, target)
    publish_masters(engine)


def _model(folder: Path) -> ModelConfig:
    """The model section of a checkpoint folder or a Hugging Face directory."""
    if is_hf_directory(folder):
        return read_config(read_json(folder, CONFIG), str(folder / CONFIG))[1].model
    layout.verify(folder, hashes=False)
    return load_saved(folder / layout.CONFIG).model


def _free(model: ModelConfig, key: str) -> bool:
    """Whether the weights do not depend on a key: a learned position table has a length, a rotation has none."""
    return key in FREE or _is_rotation(key) or (key == "max_seq_len" and model.positions != "learned")


def _is_rotation(key: str) -> bool:
    return key.startswith("rope_") and key != "rope_fraction"


def _value(model: ModelConfig, key: str) -> object:
    """A value of the model section; `head_dim=0` stands for its derived width."""
    return model.head_width if key == "head_dim" else getattr(model, key)
