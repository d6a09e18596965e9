"""The data of a run, opened and checked against the model and the tokenizer. No torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config import Config
from pretrain.data.gaps import position_after
from pretrain.data.order import Order, Stage
from pretrain.data.source import Source, open_sources
from pretrain.errors import ConfigError, DataError
from pretrain.optim.schedule import samples_between
from pretrain.run_folder import SkippedRange
from pretrain.shards.manifest import fingerprint
from tokenizer.models.base import read_tokenizer


@dataclass(frozen=True)
class OpenedData:
    """Open sources of a run, and the files of its tokenizer by name, if the configuration names one."""

    config: Config
    train: list[Source]
    valid: list[Source]
    tokenizer: dict[str, bytes] | None

    def order(self, resumed: dict[str, Any] | None = None, skipped: Sequence[SkippedRange] = ()) -> Order:
        """Order over the training sources, for a run that starts or continues from the state of a checkpoint.

        `skipped` are ranges of samples that are not read. Raises DataError if a source would be read more often than its
        `max_epochs`.
        """
        data = self.config.data
        order = Order(
            [source.ordered() for source in self.train],
            plan_stages(self.config, resumed, skipped),
            seq_len=data.seq_len,
            seed=data.seed,
            lanes=data.lanes,
            span=data.span,
        )
        _check_epochs(self.config, order, resumed)
        return order


def open_data(config: Config) -> OpenedData:
    """Open the sources of a run; check them against the model and the tokenizer. Raises ConfigError or DataError."""
    if not config.data.train:
        raise ConfigError(["data.train names no source\n    hint: data.train.web.path=DIR"])
    train = open_sources(config.data.train, config.data.seq_len, config.data.store)
    valid = open_sources(config.data.valid, config.data.seq_len, config.data.store)
    tokenizer = _read_tokenizer(config)
    for source in [*train, *valid]:
        _check_vocabulary(source, config, tokenizer)
    _check_ends(config, [*train, *valid])
    _check_distinct(train, valid)
    return OpenedData(config, train, valid, tokenizer)


def plan_stages(
    config: Config, resumed: dict[str, Any] | None = None, skipped: Sequence[SkippedRange] = ()
) -> list[Stage]:
    """Stages of the mixture, each with the sample at which it starts.

    For a resumed run, stages that have begun start where its checkpoint says: its batch size may have differed until now.
    """
    past = resumed or {"step": 0, "samples": 0, "order": {"stages": []}}
    began = [stage["start"] for stage in past["order"]["stages"]]
    stages = [Stage(0, {name: source.weight for name, source in config.data.train.items()})]
    for stage in sorted(config.data.stages.values(), key=lambda stage: stage.start_step):
        if stage.start_step >= past["step"]:
            count = samples_between(past["step"], stage.start_step, config.batch)
            start = position_after(past["samples"], count, [gap.span for gap in skipped])
        elif len(stages) < len(began):
            start = began[len(stages)]
        else:  # unknown to the checkpoint, which will not fit whatever the start
            start = stages[-1].start + 1
        stages.append(Stage(max(start, stages[-1].start + 1), stage.weights))
    return stages


def _check_epochs(config: Config, order: Order, resumed: dict[str, Any] | None) -> None:
    step, samples = (resumed["step"], resumed["samples"]) if resumed else (0, 0)
    total = samples + samples_between(step, config.schedule.total_steps, config.batch)
    used = order.counts(total) / order.sequences
    problems = []
    for source, epochs in zip(order.sources, used, strict=True):
        limit = config.data.train[source.name].max_epochs
        if limit is not None and epochs > limit:
            enough = np.searchsorted(
                [order.counts(total * part // 100)[order.sources.index(source)] for part in range(101)],
                limit * source.sequences,
                side="right",
            )
            problems.append(
                f"{source.name}: {epochs:.2f} epochs of its {source.sequences} sequences, data.train.{source.name}."
                f"max_epochs={limit:g} is reached after {enough - 1} % of the run"
            )
    if problems:
        raise DataError(
            "\n  - ".join(
                [f"schedule.total_steps={config.schedule.total_steps} reads more than max_epochs allows:", *problems]
            ),
            hint="fewer steps, a smaller weight for the source, or a larger max_epochs",
        )


def _read_tokenizer(config: Config) -> dict[str, bytes] | None:
    """Files of the tokenizer, read once: each checkpoint gets these bytes, even if the files change during training."""
    if config.data.tokenizer is None:
        return None
    try:
        return read_tokenizer(Path(config.data.tokenizer))
    except DataError as error:
        raise DataError(
            f"data.tokenizer={config.data.tokenizer}: {error.message}",
            hint="the tokenizer.model or tokenizer.json that encoded the shards",
        ) from error


def _check_vocabulary(source: Source, config: Config, tokenizer: dict[str, bytes] | None) -> None:
    """Raise DataError unless source, model and tokenizer agree. The embedding may be padded beyond the vocabulary."""
    manifest, where = source.manifest, f"source {source.name} ({source.folder})"
    if manifest.vocab_size > config.model.vocab_size:
        raise DataError(
            f"{where} was encoded with a vocabulary of {manifest.vocab_size}, and model.vocab_size is only "
            f"{config.model.vocab_size}",
            hint=f"model.vocab_size={manifest.vocab_size}, or more",
        )
    # The first file encoded the shards; the others only name special tokens.
    main = None if tokenizer is None else next(iter(tokenizer.values()))
    digest = manifest.tokenizer_sha256 if main is None else hashlib.sha256(main).hexdigest()
    if digest != manifest.tokenizer_sha256:
        raise DataError(
            f"data.tokenizer={config.data.tokenizer} (sha256 {digest[:12]}…) is not the tokenizer that encoded {where} "
            f"(sha256 {manifest.tokenizer_sha256[:12]}…)",
            hint="index the foreign shards again with --tokenizer"
            if manifest.tokenizer_sha256 == "0" * 64
            else "name the tokenizer file that was given to `pretrain tokenizer encode`, or encode again",
        )


def _check_ends(config: Config, sources: Sequence[Source]) -> None:
    """Raise DataError unless all sources end documents with the same id, which data.document_mask needs."""
    first = sources[0]
    for source in sources if config.data.document_mask else []:
        if source.manifest.eos_id != first.manifest.eos_id:
            raise DataError(
                f"source {source.name} ({source.folder}) ends documents with the id {source.manifest.eos_id}, and "
                f"{first.name} ({first.folder}) with {first.manifest.eos_id}",
                hint="encode both with the same tokenizer, or leave out data.document_mask",
            )


def _check_distinct(train: list[Source], valid: list[Source]) -> None:
    """Raise DataError if a held-out source is also trained on."""
    trained = {fingerprint(source.manifest): source.name for source in train}
    for source in valid:
        same = trained.get(fingerprint(source.manifest))
        if same is not None:
            raise DataError(
                f"held-out source {source.name} ({source.folder}) holds the same tokens as training source {same}",
                hint="encode a held-out part of the corpus separately, and name that in data.valid",
            )
