"""Which checkpoint a run starts from: what lies in it, what an object store may bring, and `checkpoint.resume`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.layout import MANIFEST
from pretrain.config import load_config
from pretrain.config.load import config_text
from pretrain.errors import CheckpointError
from pretrain.training.startup.opened_data import OpenedData, open_data
from pretrain.training.startup.preflight import prepare
from pretrain.training.startup.resume import ResumePoint, find_resume_point
from tests.support.checkpoints import WEIGHTS, flip_a_bit, save
from tests.support.runs import make_run


class Run:
    """A run's data and checkpoints; `recover` stands for a store that brings what `there` holds."""

    def __init__(self, folder: Path) -> None:
        self.prepared = open_data(load_config(make_run(folder)).config)
        self.checkpoints = folder / "run" / "checkpoints"
        self.checkpoints.mkdir(parents=True)
        self.skipped: list[str] = []
        self.asked = 0

    def save(self, step: int, place: Path | None = None) -> Path:
        config = config_text(self.prepared.config).encode()
        return save(place or self.checkpoints, step, config=config, **self._state(step))

    def find(self, resume: str = "auto", *, hashes: bool = True, **options: Any) -> int | None:
        checkpoint = replace(self.prepared.config.checkpoint, resume=resume, upload=options.pop("upload", None))
        prepared = replace(self.prepared, config=replace(self.prepared.config, checkpoint=checkpoint))
        point = find_resume_point(prepared, hashes=hashes, **options)
        self.skipped = list(point.skipped)
        return None if point.checkpoint is None else point.step

    def store(self, step: int | None, *reasons: str) -> Callable[[Callable[[str], None]], ResumePoint | None]:
        def recover(skipped: Callable[[str], None]) -> ResumePoint | None:
            self.asked += 1
            for reason in reasons:
                skipped(reason)
            return None if step is None else ResumePoint(self.save(step), {"step": step, **self._state(step)})

        return recover

    def _state(self, step: int) -> dict[str, Any]:
        rest = {"tokens": 1, "optimizer_steps": step, "loss_scale": {}, "world_size": 1}
        return {"samples": 8 * step, "order": self.prepared.order().description, **rest}


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_the_newest_whole_checkpoint_is_taken_and_the_store_not_asked(run: Run) -> None:
    for step in (4, 8, 12):
        run.save(step)
    flip_a_bit(run.checkpoints / "step-00000012" / WEIGHTS)
    assert run.find("must", recover=run.store(20)) == 8
    assert run.asked == 0 and len(run.skipped) == 1 and "is corrupt" in run.skipped[0]
    assert run.find("auto", hashes=False) == 12


def test_an_empty_run_starts_from_scratch_or_from_the_store(run: Run) -> None:
    assert run.find() is None
    assert run.find(recover=run.store(None)) is None
    assert run.find("must", recover=run.store(8)) == 8


def test_must_fails_without_a_checkpoint_anywhere(run: Run) -> None:
    for options in ({}, {"recover": run.store(None)}):
        with pytest.raises(CheckpointError, match=r"holds no usable checkpoint\n") as caught:
            run.find("must", **options)
        assert caught.value.hint == "checkpoint.resume=auto starts from scratch"


def test_before_the_store_can_be_asked_nothing_is_decided(run: Run) -> None:
    """Every process looks before the run is claimed; one of them asks the store after it."""
    memory = "memory://x"
    assert run.find("must", upload=memory) is None
    (run.save(4) / MANIFEST).unlink()
    assert run.find("auto", upload=memory) is None
    with pytest.raises(CheckpointError, match="no usable checkpoint among 1:"):
        run.find("auto", upload=memory, recover=run.store(None))
    assert run.find("auto", upload=memory, recover=run.store(8)) == 8
    assert len(run.skipped) == 1 and "step-00000004" in run.skipped[0]


def test_nothing_starts_again_silently_where_the_store_holds_only_damaged_ones(run: Run) -> None:
    with pytest.raises(CheckpointError, match=r"no usable checkpoint among 2:\n  - one is corrupt\n  - and two"):
        run.find("auto", recover=run.store(None, "one is corrupt", "and two"))


def test_never_refuses_what_lies_in_the_run(run: Run) -> None:
    run.save(4)
    with pytest.raises(CheckpointError, match=r"resume=never, and .* holds a checkpoint of step 4"):
        run.find("never", recover=run.store(None))
    assert run.asked == 0


def test_what_the_store_brings_must_fit_the_run(run: Run) -> None:
    def recover(_: Callable[[str], None]) -> ResumePoint:
        folder = save(run.checkpoints, 4, config=config_text(other).encode())
        return ResumePoint(folder, {"step": 4, **run._state(4)})

    config = run.prepared.config
    other = replace(config, model=replace(config.model, n_layers=5))
    with pytest.raises(CheckpointError, match=r"does not fit this run(?s:.*)model.n_layers: 5 → 2"):
        run.find(recover=recover)


def test_an_address_is_checked_before_anything_starts(tmp_path: Path) -> None:
    config = load_config(make_run(tmp_path), ["checkpoint.upload=https://host/run"]).config
    with pytest.raises(Exception, match="is not one of s3://"):
        prepare(config, 1)
    config = load_config(make_run(tmp_path), ["checkpoint.upload=memory://run", "checkpoint.resume=must"]).config
    assert isinstance(prepare(config, 1), OpenedData)


def test_a_state_of_another_version_is_refused_with_what_it_lacks(run: Run) -> None:
    config = config_text(run.prepared.config).encode()
    save(run.checkpoints, 4, config=config, samples=32, order=run.prepared.order().description)
    with pytest.raises(
        CheckpointError, match=r"state\.json lacks loss_scale, optimizer_steps, tokens, world_size"
    ) as caught:
        run.find()
    assert "another version wrote it" in str(caught.value.hint)


def test_a_resume_says_what_changed_since_the_checkpoint(run: Run) -> None:
    run.save(4)
    optimizer = replace(run.prepared.config.optimizer, lr=9e-3)
    changed = replace(run.prepared, config=replace(run.prepared.config, optimizer=optimizer))
    same, other = (find_resume_point(data, hashes=False).changes for data in (run.prepared, changed))
    assert same == ()
    line, warning = other
    assert line == "changed since step 4: optimizer.lr: 0.003 → 0.009"
    assert warning == "warning: the learning rate jumps at step 5: 3.00e-03 → 9.00e-03"


def test_the_hint_for_a_source_that_is_added_works_when_typed(run: Run, tmp_path: Path) -> None:
    run.save(4)
    added = (f"data.train.new.path={tmp_path / 'valid'}", "data.train.new.weight=0.5", "data.valid=null")
    with pytest.raises(CheckpointError, match=r"sources: a \(\w{8}…\) → a") as caught:
        find_resume_point(open_data(load_config(tmp_path / "config.yaml", added).config), hashes=False)
    arguments = str(caught.value.hint).rpartition(": ")[2].split()
    assert "data.train.new.weight=0" in arguments
    data = open_data(load_config(tmp_path / "config.yaml", (*added, *arguments)).config)
    assert find_resume_point(data, hashes=False).step == 4
