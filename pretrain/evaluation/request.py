"""The options of `pretrain evaluate`, and their checks before any process starts."""

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

UNKNOWN_TOKENIZER = "0" * 64  # in the manifest of foreign shards indexed without a tokenizer


@dataclass(frozen=True)
class EvaluationRequest:
    """Options of the command. None means as in training; an empty `data` means the held-out sources of the run."""

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
    checkpoint: str | None = None  # the folder of `path` and `step`, once resolved

    def to_json(self) -> str:
        """For the command line of the workers."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "EvaluationRequest":
        """Inverse of `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "tasks": tuple(values["tasks"])})


class OpenedEvaluation(NamedTuple):
    """Verified weights and the held-out sources that match them; no sources for tasks only."""

    weights: WeightSource
    sources: list[Source]
    document_mask: bool
    seq_len: int

    @property
    def checkpoint(self) -> Path | None:
        """The folder of our own checkpoint; None for a Hugging Face directory."""
        return self.weights.folder if isinstance(self.weights, CheckpointReader) else None


def open_request(request: EvaluationRequest) -> OpenedEvaluation:
    """Open and check the weights and the data. Raises UserError."""
    _check_json_path(request)
    path, step = (request.path, request.step) if request.checkpoint is None else (request.checkpoint, None)
    weights = open_weights(Path(path), step)
    data, model = weights.config.data, weights.config.model
    # A Hugging Face directory knows the longest sequence of the model, not the length used in training.
    seq_len = request.seq_len or (data.seq_len if data.train else model.max_seq_len)
    mask = data.document_mask if request.document_mask is None else request.document_mask
    if seq_len > model.max_seq_len:
        raise UserError(
            f"--seq-len {seq_len} is above the model's model.max_seq_len={model.max_seq_len}",
            hint=f"--seq-len {model.max_seq_len}",
        )
    if request.tasks and weights.tokenizer is None:
        raise UserError(
            f"{request.path} was saved without a tokenizer, which tasks need",
            hint="train with data.tokenizer=FILE",
        )
    if request.tasks and not request.data:
        return OpenedEvaluation(weights, [], mask, seq_len)
    return OpenedEvaluation(weights, _open_sources(request, weights, seq_len), mask, seq_len)


def _check_json_path(request: EvaluationRequest) -> None:
    if request.json_file is None:
        return
    if Path(request.json_file).is_dir():
        raise UserError(f"--json {request.json_file} is a folder", hint="give the path of a file")
    if not Path(request.json_file).parent.is_dir():
        raise UserError(f"--json {request.json_file}: its folder does not exist")
    if not os.access(Path(request.json_file).parent, os.W_OK | os.X_OK):
        raise UserError(f"--json {request.json_file}: its folder is not writable")


def _open_sources(request: EvaluationRequest, weights: WeightSource, seq_len: int) -> list[Source]:
    saved = weights.config.data
    wanted = {name: SourceConfig(path) for name, path in request.data.items()} or saved.valid
    if not wanted:
        raise UserError(
            f"{request.path} has no held-out sources", hint="--data NAME=SHARDS, e.g. --data books=shards/books"
        )
    try:
        sources = open_sources(wanted, seq_len, saved.store)
    except DataError as error:
        raise DataError(error.message.replace("data.seq_len=", "--seq-len "), hint=_hint(error, request)) from error
    digests = tokenizer_digests(weights.tokenizer)
    problems = [problem for source in sources if (problem := _mismatch(source, weights, digests)) is not None]
    if problems:
        raise DataError(
            "\n  - ".join([f"the held-out sources do not match {request.path}:", *problems]),
            hint="encode them with the tokenizer of the weights: pretrain tokenizer encode",
        )
    for source in sources:
        source.check_shards()
    return sources


def _hint(error: DataError, request: EvaluationRequest) -> str | None:
    if error.hint is not None and "data.seq_len=" in error.hint:
        return error.hint.replace("data.seq_len=", "--seq-len ")
    # Paths in a run's config are relative to the folder in which it was started.
    return (
        error.hint
        if request.data
        else "run it in the folder where the run was started, or give shards: --data NAME=SHARDS"
    )


def tokenizer_digests(tokenizer: Path | None) -> set[str]:
    """SHA-256 of each form of the tokenizer saved with the weights; shards name one of them."""
    if tokenizer is None:
        return set()
    files = (tokenizer, tokenizer.with_name(SENTENCEPIECE_MODEL), tokenizer.with_name(TOKENIZER_JSON))
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def _mismatch(source: Source, weights: WeightSource, digests: set[str]) -> str | None:
    """Why a source does not match the model, if so. Same rule as training (`startup.preflight`)."""
    manifest, where = source.manifest, f"{source.name} ({source.folder})"
    vocab_size = weights.config.model.vocab_size
    if manifest.vocab_size > vocab_size:
        return f"{where} was encoded with a vocabulary of {manifest.vocab_size}; the model has {vocab_size}"
    if not digests or manifest.tokenizer_sha256 in digests:
        return None
    if manifest.tokenizer_sha256 == UNKNOWN_TOKENIZER:
        return f"{where} was indexed without a tokenizer, but the weights have one: index it again with --tokenizer"
    own = " or ".join(f"{digest[:12]}…" for digest in sorted(digests))
    return f"{where} was encoded with another tokenizer: sha256 {manifest.tokenizer_sha256[:12]}…, not {own}"
