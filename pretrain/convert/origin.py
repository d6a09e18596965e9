"""The origin of a run's initial weights: what `run.init_from` names."""

from pathlib import Path

from pretrain.checkpoint import layout
from pretrain.config.load import load_saved
from pretrain.config.schema import Config
from pretrain.convert.files.hf_directory import CONFIG, is_hf_directory, model_name, read_json
from pretrain.errors import CheckpointError, PretrainError
from pretrain.run_folder import RunFolder


def imported_from(config: Config, runs: int = 8) -> str | None:
    """Name of the imported model that a chain of at most `runs` runs started from; None if there is none or it is gone."""
    if config.run.init_from is None:
        return None
    path = Path(config.run.init_from)
    try:
        if is_hf_directory(path):
            return model_name(path, read_json(path, CONFIG))
        folder = init_checkpoint(path)
        found = layout.read_json(folder / layout.STATE).get("imported_from")
        if found is None and runs > 1:
            return imported_from(load_saved(folder / layout.CONFIG), runs - 1)
    except (PretrainError, OSError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def init_checkpoint(path: Path) -> Path:
    """The checkpoint folder that run.init_from names, or the newest of that run. Raises CheckpointError."""
    if not path.is_dir():
        raise CheckpointError(
            f"run.init_from={path} does not exist",
            hint="name a run, one of its checkpoint folders, or a Hugging Face directory",
        )
    if layout.parse_name(path.name) is not None and (path / layout.MANIFEST).is_file():
        return path
    run = RunFolder(path)
    return layout.find_step(None, run.checkpoints, run.weights)
