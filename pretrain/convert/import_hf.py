"""A Hugging Face directory → a run folder of ours, from which training goes on.

    RUN/weights/step-00000000/   a save of the weights alone, as a training writes it: fp32, whatever they were stored in
    RUN/tokenizer/               the directory's tokenizer, for `pretrain tokenizer encode` and data.tokenizer
    RUN/config.yaml              a whole configuration, which lacks only sources of data

It is written into a folder beside RUN and renamed when all of it is on the disk.
"""

import os
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import prod
from pathlib import Path

from torch import Tensor

from pretrain.checkpoint import layout
from pretrain.checkpoint.piece_file import write_pieces
from pretrain.checkpoint.pieces import piece_key
from pretrain.config.load import config_text
from pretrain.config.schema import Config, RunConfig
from pretrain.convert.files.hf_directory import is_hf_directory
from pretrain.convert.files.hf_reader import HfSource
from pretrain.convert.files.tokenizer_files import check_tokenizer, tokenizer_notes
from pretrain.convert.files.weight_files import plan_shards
from pretrain.errors import UserError
from pretrain.run_folder import RunFolder
from pretrain.storage.files import publish_folder, staging_folder, sync, write_synced
from tokenizer.models.base import read_tokenizer

FILE_BYTES = 500_000_000  # of tensors that are in memory at once, or one tensor where that is larger
LONGEST_SEQUENCE = 4096  # what data.seq_len becomes for models that can take more


@dataclass(frozen=True)
class ImportReport:
    """What was written, and what a person should know of it."""

    run: Path
    architecture: str
    parameters: int
    seq_len: int
    tokenizer: Path
    notes: tuple[str, ...]

    def summary(self) -> str:
        """What was imported, the notes, and the commands that go on from here."""
        return "\n".join(
            [
                f"{self.run}: {self.architecture}, {self.parameters:,} parameters",
                *(f"note: {note}" for note in self.notes),
                "to train on:",
                f"  pretrain tokenizer encode --tokenizer {self.tokenizer} --input CORPUS --output SHARDS",
                f"  pretrain launch local {self.run / layout.CONFIG} data.train.own.path=SHARDS",
                f"sequences of {self.seq_len} tokens; data.seq_len={self.seq_len // 2} makes them shorter",
            ]
        )


def import_hf(directory: Path, run: Path, *, tokenizer: Path | None = None) -> ImportReport:
    """Write the run folder. `tokenizer` is a file to take in place of the directory's own.

    Raises UserError for a run that exists and for a directory without a tokenizer, DataError with every reason for a model
    or a tokenizer that cannot be taken over exactly. Nothing is left behind then.
    """
    if os.path.lexists(run):
        raise UserError(f"{run} exists", hint="choose another run folder")
    saves = (RunFolder(directory).checkpoints, RunFolder(directory).weights)
    is_ours = any(map(layout.list_steps, saves)) or (directory / layout.MANIFEST).is_file()
    if is_ours and not is_hf_directory(directory):
        raise UserError(
            f"{directory} is a run or a checkpoint of ours, and needs no import",
            hint=f"run.init_from={directory} begins a run with its weights",
        )
    source = HfSource(directory)
    model_file = tokenizer or source.tokenizer
    if model_file is None:
        raise UserError(
            f"{directory} holds no tokenizer, and without one there is no text for this model",
            hint="name its file with --tokenizer; transformers' AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) "
            "writes a tokenizer.json",
        )
    check_tokenizer(model_file, source.config.model.vocab_size)
    files = read_tokenizer(model_file)
    named = run / "tokenizer" / next(iter(files))
    config = _run_config(source.config, run, named)
    with staging_folder(run) as staging:
        _write_checkpoint(staging, source, config, files)
        (staging / named.parent.name).mkdir()
        for name, data in files.items():
            write_synced(staging / named.parent.name / name, data)
        sync(staging / named.parent.name)
        write_synced(staging / layout.CONFIG, config_text(config).encode())
        publish_folder(staging, run)
    return ImportReport(
        run=run,
        architecture=source.family.architecture,
        parameters=sum(prod(shape) for shape in source.shapes.values()),
        seq_len=config.data.seq_len,
        tokenizer=named,
        notes=(*source.notes, *tokenizer_notes(model_file)),
    )


def _run_config(config: Config, run: Path, tokenizer: Path) -> Config:
    """Defaults for all that a directory does not say."""
    # A power of two: it has to divide the blocks of the shards.
    seq_len = 1 << (min(config.data.seq_len, LONGEST_SEQUENCE).bit_length() - 1)
    return replace(
        config,
        run=RunConfig(dir=str(run), init_from=str(RunFolder(run).weights / layout.checkpoint_name(0))),
        data=replace(config.data, seq_len=seq_len, tokenizer=str(tokenizer)),
    )


def _write_checkpoint(staging: Path, source: HfSource, config: Config, tokenizer: dict[str, bytes]) -> None:
    """A save of the weights alone, of step 0. Its data.seq_len is the context that the directory claims."""
    weights = RunFolder(staging).weights
    folder = layout.staging_folder(weights, 0, 1)
    folder.mkdir(parents=True)
    versions = {name: version(name) for name in ("pretrain-toolkit", "torch")}
    state = {"step": 0, "samples": 0, "tokens": 0, **source.state, "versions": versions}
    saved = replace(config, data=replace(config.data, seq_len=source.config.data.seq_len))
    files = {layout.STATE: layout.json_bytes(state), layout.CONFIG: config_text(saved).encode(), **tokenizer}
    entries = [layout.write_file(folder / name, data) for name, data in files.items()]
    sizes = {name: 4 * prod(shape) for name, shape in source.shapes.items()}
    for number, names in enumerate(plan_shards(sizes, FILE_BYTES)):
        pieces: dict[str, Tensor] = {piece_key("fp32", 0, name): source.tensor(name).view(-1) for name in names}
        entries.append(write_pieces(folder / f"weights-{number:05d}.safetensors", pieces))
    layout.commit(weights, 0, entries, 1)
