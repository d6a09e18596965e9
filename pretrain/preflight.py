"""Everything that can be known to be wrong before a process group starts, checked without torch.

Every rank runs it, and `pretrain launch local` runs it before it starts any of them.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint import layout
from pretrain.checkpoint.load import check_fits
from pretrain.config import Config, check_world
from pretrain.data.manifest import fingerprint
from pretrain.data.order import Order
from pretrain.data.source import Source, open_sources
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.state import RunFolder


@dataclass(frozen=True)
class Prepared:
    """The open sources of a run, the order over them, and the tokenizer that they were encoded with, where it is named."""

    train: list[Source]
    valid: list[Source]
    order: Order
    tokenizer: bytes | None


def prepare(config: Config, world_size: int) -> Prepared:
    """Open and check the data, the batch arithmetic and the checkpoint to resume from. Raises UserError."""
    check_world(config, world_size)
    RunFolder(Path(config.run.dir)).check_free()
    prepared = open_data(config)
    # Sizes only: hashing is left to the one rank that then decides for all.
    find_resume(config, prepared.order.description, hashes=False, skipped=lambda _: None)
    return prepared


def open_data(config: Config) -> Prepared:
    """Open the sources of a run and hold them against the model and the tokenizer. Raises ConfigError or DataError."""
    if not config.data.train:
        raise ConfigError(["data.train names no source\n    hint: data.train.web.path=DIR"])
    train = open_sources(config.data.train, config.data.seq_len)
    valid = open_sources(config.data.valid, config.data.seq_len)
    tokenizer = _read_tokenizer(config)
    for source in [*train, *valid]:
        _check_vocabulary(source, config, tokenizer)
    _check_distinct(train, valid)
    order = Order(
        [source.ordered() for source in train],
        seq_len=config.data.seq_len,
        seed=config.data.seed,
        lanes=config.data.lanes,
        span=config.data.span,
    )
    return Prepared(train, valid, order, tokenizer)


def find_resume(
    config: Config, order: dict[str, Any], *, hashes: bool, skipped: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to start from with its state, None for a start from scratch.

    Raises CheckpointError where `checkpoint.resume` forbids what is there, where nothing that is there verifies (a run must
    not start again silently), and where it does not fit the run.
    """
    checkpoints = RunFolder(Path(config.run.dir)).checkpoints
    steps = layout.list_steps(checkpoints)
    if config.checkpoint.resume == "never" and steps:
        raise CheckpointError(
            f"checkpoint.resume=never, and {checkpoints} holds a checkpoint of step {steps[-1]}",
            hint="checkpoint.resume=auto, or a new run.dir",
        )
    reasons: list[str] = []
    found = layout.find_newest(checkpoints, hashes=hashes, skipped=reasons.append)
    if found is None and (steps or config.checkpoint.resume == "must"):
        raise CheckpointError(
            "\n  - ".join(
                [f"{checkpoints} holds no usable checkpoint" + (f" among {len(steps)}:" if steps else ""), *reasons]
            ),
            hint="remove the damaged ones to start again" if steps else "checkpoint.resume=auto starts from scratch",
        )
    if found is not None:
        check_fits(*found, config, order)
    for reason in reasons:
        skipped(reason)
    return found


def _read_tokenizer(config: Config) -> bytes | None:
    """The tokenizer as it is now: each checkpoint gets these bytes, whatever becomes of the file during weeks of training."""
    if config.data.tokenizer is None:
        return None
    try:
        return Path(config.data.tokenizer).read_bytes()
    except OSError as error:
        raise DataError(
            f"data.tokenizer={config.data.tokenizer} cannot be read: {error.strerror}",
            hint="the tokenizer.model that encoded the shards",
        ) from error


def _check_vocabulary(source: Source, config: Config, tokenizer: bytes | None) -> None:
    manifest, where = source.manifest, f"source {source.name} ({source.folder})"
    if manifest.vocab_size != config.model.vocab_size:
        raise DataError(
            f"{where} was encoded with a vocabulary of {manifest.vocab_size}, and model.vocab_size is "
            f"{config.model.vocab_size}",
            hint=f"model.vocab_size={manifest.vocab_size}",
        )
    digest = manifest.tokenizer_sha256 if tokenizer is None else hashlib.sha256(tokenizer).hexdigest()
    if digest != manifest.tokenizer_sha256:
        raise DataError(
            f"data.tokenizer={config.data.tokenizer} (sha256 {digest[:12]}…) is not the tokenizer that encoded {where} "
            f"(sha256 {manifest.tokenizer_sha256[:12]}…)",
            hint="name the tokenizer.model that was given to `pretrain tokenizer encode`, or encode again",
        )


def _check_distinct(train: list[Source], valid: list[Source]) -> None:
    """Held-out text that was trained on measures nothing."""
    trained = {fingerprint(source.manifest): source.name for source in train}
    for source in valid:
        same = trained.get(fingerprint(source.manifest))
        if same is not None:
            raise DataError(
                f"held-out source {source.name} ({source.folder}) holds the same tokens as training source {same}",
                hint="encode a part of the corpus apart, and name it below data.valid",
            )
