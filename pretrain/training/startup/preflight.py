"""Everything that can be known to be wrong before a process group starts, checked without torch.

Every rank runs it, and `pretrain launch local` runs it before it starts any of them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.checkpoint import layout
from pretrain.checkpoint.remote import check_upload
from pretrain.checkpoint.restore import check_fits, check_state
from pretrain.config import Config, check_world
from pretrain.data.order import Order, Stage
from pretrain.data.source import Source, open_sources
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.generation.prompts import sample_prompts
from pretrain.optim.schedule import samples_between
from pretrain.run_folder import RunFolder, SkippedRange
from pretrain.shards.manifest import fingerprint
from pretrain.training.startup.init_weights import check_start
from tokenizer.models.base import read_tokenizer

Found = tuple[Path, dict[str, Any]] | None  # a checkpoint and its state


@dataclass(frozen=True)
class OpenedData:
    """The open sources of a run, and the files of the tokenizer that they were encoded with, where it is named."""

    config: Config
    train: list[Source]
    valid: list[Source]
    tokenizer: dict[str, bytes] | None

    def order(self, resumed: dict[str, Any] | None = None, jumps: Sequence[SkippedRange] = ()) -> Order:
        """The order over the training sources, for a run that goes on from the state of a checkpoint.

        `jumps` are the samples that it jumps over.

        Raises DataError where it would read a source more often than its `max_epochs`.
        """
        data = self.config.data
        order = Order(
            [source.ordered() for source in self.train],
            plan_stages(self.config, resumed, jumps),
            seq_len=data.seq_len,
            seed=data.seed,
            lanes=data.lanes,
            span=data.span,
        )
        _check_epochs(self.config, order, resumed)
        return order


def prepare(config: Config, world_size: int, *, is_main: bool = True) -> OpenedData:
    """Open and check the data, the batch arithmetic and the checkpoint to resume from. Raises UserError.

    One process of a run looks whether all shards are there: a thousand that list a folder are a burden for its store.
    """
    check_world(config, world_size)
    check_upload(config)
    RunFolder(Path(config.run.dir)).check_free()
    prepared = open_data(config)
    sample_prompts(config, prepared.tokenizer)
    # Sizes only: hashing is left to the one rank that then decides for all.
    found = find_resume(prepared, hashes=False, skipped=lambda _: None)
    if found is None and config.checkpoint.upload is None:  # else there may be a checkpoint in the store
        check_start(config)
    if is_main:
        for source in (*prepared.train, *prepared.valid):
            source.check_shards()
    return prepared


def open_data(config: Config) -> OpenedData:
    """Open the sources of a run and hold them against the model and the tokenizer. Raises ConfigError or DataError."""
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
    config: Config, resumed: dict[str, Any] | None = None, jumps: Sequence[SkippedRange] = ()
) -> list[Stage]:
    """The stages of weights with the sample at which each starts.

    For a run that goes on, from where it stands: its batch may have been another until now, and stages that have begun
    started where the checkpoint says.
    """
    past = resumed or {"step": 0, "samples": 0, "order": {"stages": []}}
    began = [stage["start"] for stage in past["order"]["stages"]]
    stages = [Stage(0, {name: source.weight for name, source in config.data.train.items()})]
    for stage in sorted(config.data.stages.values(), key=lambda stage: stage.start_step):
        if stage.start_step >= past["step"]:
            start = past["samples"] + samples_between(past["step"], stage.start_step, config.batch)
            for jump in sorted(jumps):
                start += jump.samples if past["samples"] <= jump.first < start else 0
        elif len(stages) < len(began):
            start = began[len(stages)]
        else:  # the past did not know it: whatever its start, the checkpoint will not fit
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
                [f"schedule.total_steps={config.schedule.total_steps} reads more than is allowed:", *problems]
            ),
            hint="fewer steps, less weight for the source, or a larger max_epochs",
        )


def find_resume(
    prepared: OpenedData,
    *,
    hashes: bool,
    skipped: Callable[[str], None],
    recover: Callable[[Callable[[str], None]], Found] | None = None,
) -> Found:
    """The checkpoint to start from with its state, None for a start from scratch.

    `recover` may bring one where the run has none. Without it and with `checkpoint.upload`, that is left open.

    Raises CheckpointError where `checkpoint.resume` forbids what is there, where nothing that is there verifies (a run must
    not start again silently), and where it does not fit the run.
    """
    config = prepared.config
    checkpoints = RunFolder(Path(config.run.dir)).checkpoints
    steps = layout.list_steps(checkpoints)
    if config.checkpoint.resume == "never" and steps:
        raise CheckpointError(
            f"checkpoint.resume=never, and {checkpoints} holds a checkpoint of step {steps[-1]}",
            hint="checkpoint.resume=auto, or a new run.dir",
        )
    reasons: list[str] = []
    found = layout.find_newest(checkpoints, hashes=hashes, skipped=reasons.append)
    if found is None and recover is not None:
        found = recover(reasons.append)
    decided = recover is not None or config.checkpoint.upload is None
    if found is None and decided and (reasons or config.checkpoint.resume == "must"):
        raise CheckpointError(
            "\n  - ".join(
                [f"{checkpoints} holds no usable checkpoint" + (f" among {len(reasons)}:" if reasons else ""), *reasons]
            ),
            hint="remove the damaged ones to start again" if reasons else "checkpoint.resume=auto starts from scratch",
        )
    if found is not None:
        check_state(*found)
    order = prepared.order(None if found is None else found[1])
    if found is not None:
        check_fits(*found, config, order.description)
    for reason in reasons:
        skipped(reason)
    return found


def _read_tokenizer(config: Config) -> dict[str, bytes] | None:
    """The tokenizer as it is now: each checkpoint gets these bytes, whatever becomes of the files during weeks of training."""
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
    """Rows of the embedding that no token has are fine: models of others are made with a round number of them."""
    manifest, where = source.manifest, f"source {source.name} ({source.folder})"
    if manifest.vocab_size > config.model.vocab_size:
        raise DataError(
            f"{where} was encoded with a vocabulary of {manifest.vocab_size}, and model.vocab_size is only "
            f"{config.model.vocab_size}",
            hint=f"model.vocab_size={manifest.vocab_size}, or more",
        )
    # The file that the shards were made with is the first; what lies beside it says what its special tokens are.
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
    """What ends a document has to be the same everywhere, where attention stays within documents."""
    first = sources[0]
    for source in sources if config.data.document_mask else []:
        if source.manifest.eos_id != first.manifest.eos_id:
            raise DataError(
                f"source {source.name} ({source.folder}) ends documents with the id {source.manifest.eos_id}, and "
                f"{first.name} ({first.folder}) with {first.manifest.eos_id}",
                hint="encode both with the same tokenizer, or leave out data.document_mask",
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
