"""What `pretrain evaluate` was asked for, and everything about it that can be known to be wrong before a process starts."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from pretrain.checkpoint.checkpoint_reader import CheckpointReader
from pretrain.config.schema import SourceConfig
from pretrain.convert.files.weight_files import WeightSource
from pretrain.convert.weight_sources import open_weights
from pretrain.data.source import Source, open_sources
from pretrain.errors import DataError, UserError
from tokenizer.models.base import SENTENCEPIECE_MODEL, TOKENIZER_JSON

UNKNOWN_TOKENIZER = "0" * 64  # of foreign shards that were indexed without one


@dataclass(frozen=True)
class EvaluationRequest:
    """The options of the command. None stands for what the weights say, `data` empty for the run's own held-out sources."""

    path: str
    step: int | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    max_sequences: int | None = None
    micro_batch_size: int = 8
    seq_len: int | None = None
    document_mask: bool | None = None
    dtype: str = "fp32"
    device: str = "auto"
    threads: int = 1
    tasks: tuple[str, ...] = ()
    tasks_path: str | None = None
    json_file: str | None = None
    checkpoint: str | None = None  # the folder that `path` and `step` mean, once that is known

    def to_json(self) -> str:
        """For another process's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "EvaluationRequest":
        """From what `to_json` gave."""
        values = json.loads(text)
        return cls(**{**values, "tasks": tuple(values["tasks"])})


class OpenedEvaluation(NamedTuple):
    """Weights that verify, and held-out sources that fit them; none where only tasks were asked for."""

    weights: WeightSource
    sources: list[Source]
    document_mask: bool
    seq_len: int

    @property
    def checkpoint(self) -> Path | None:
        """The folder of a checkpoint of ours; None for a directory of Hugging Face."""
        return self.weights.folder if isinstance(self.weights, CheckpointReader) else None


def open_request(request: EvaluationRequest) -> OpenedEvaluation:
    """Open and check all that the request names, but for the tasks. Raises UserError."""
    _check_json_file(request)
    opened = (request.path, request.step) if request.checkpoint is None else (request.checkpoint, None)
    weights = open_weights(Path(opened[0]), opened[1])
    data, model = weights.config.data, weights.config.model
    # A directory of Hugging Face says how long its sequences may be, and not how long they were.
    seq_len = request.seq_len or (data.seq_len if data.train else model.max_seq_len)
    mask = data.document_mask if request.document_mask is None else request.document_mask
    if seq_len > model.max_seq_len:
        raise UserError(
            f"--seq-len {seq_len} is longer than the model reads: its model.max_seq_len is {model.max_seq_len}",
            hint=f"--seq-len {model.max_seq_len}, or less",
        )
    if request.tasks and weights.tokenizer is None:
        raise UserError(
            f"{request.path} was saved without a tokenizer, and tasks are texts",
            hint="train with data.tokenizer=FILE",
        )
    if request.tasks and not request.data:
        return OpenedEvaluation(weights, [], mask, seq_len)
    return OpenedEvaluation(weights, _open_sources(request, weights, seq_len), mask, seq_len)


def _check_json_file(request: EvaluationRequest) -> None:
    if request.json_file is None:
        return
    if Path(request.json_file).is_dir():
        raise UserError(f"--json {request.json_file} is a folder", hint="name a file")
    if not Path(request.json_file).parent.is_dir():
        raise UserError(f"--json {request.json_file}: its folder does not exist")
    if not os.access(Path(request.json_file).parent, os.W_OK | os.X_OK):
        raise UserError(f"--json {request.json_file}: its folder cannot be written")


def _open_sources(request: EvaluationRequest, weights: WeightSource, seq_len: int) -> list[Source]:
    saved = weights.config.data
    wanted = {name: SourceConfig(path) for name, path in request.data.items()} or saved.valid
    if not wanted:
        raise UserError(
            f"{request.path} names no held-out sources", hint="--data NAME=SHARDS, e.g. --data books=shards/books"
        )
    try:
        sources = open_sources(wanted, seq_len, saved.store)
    except DataError as error:
        raise DataError(error.message.replace("data.seq_len=", "--seq-len "), hint=_hint(error, request)) from error
    digests = tokenizer_digests(weights.tokenizer)
    problems = [problem for source in sources if (problem := _misfit(source, weights, digests)) is not None]
    if problems:
        raise DataError(
            "\n  - ".join([f"the held-out sources do not fit {request.path}:", *problems]),
            hint="encode them with the tokenizer of the weights: pretrain tokenizer encode",
        )
    for source in sources:
        source.check_shards()
    return sources


def _hint(error: DataError, request: EvaluationRequest) -> str | None:
    if error.hint is not None and "data.seq_len=" in error.hint:
        return error.hint.replace("data.seq_len=", "--seq-len ")
    # The paths of a run are those of the folder that it was started in.
    return error.hint if request.data else "start it where the run was started, or name shards: --data NAME=SHARDS"


def tokenizer_digests(tokenizer: Path | None) -> set[str]:
    """SHA-256 of the tokenizer that lies with the weights, in each form: shards are made with one of them."""
    if tokenizer is None:
        return set()
    files = (tokenizer, tokenizer.with_name(SENTENCEPIECE_MODEL), tokenizer.with_name(TOKENIZER_JSON))
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def _misfit(source: Source, weights: WeightSource, digests: set[str]) -> str | None:
    """Why the model cannot be measured on a source. The rule of training (preflight.py)."""
    manifest, where = source.manifest, f"{source.name} ({source.folder})"
    vocab_size = weights.config.model.vocab_size
    if manifest.vocab_size > vocab_size:
        return f"{where} was encoded with a vocabulary of {manifest.vocab_size}, and the model has {vocab_size}"
    if not digests or manifest.tokenizer_sha256 in digests:
        return None
    if manifest.tokenizer_sha256 == UNKNOWN_TOKENIZER:
        return f"{where} was indexed without a tokenizer, and the weights have one: index it again with --tokenizer"
    mine = " or ".join(f"{digest[:12]}…" for digest in sorted(digests))
    return f"{where} was encoded with another tokenizer: sha256 {manifest.tokenizer_sha256[:12]}…, not {mine}"
