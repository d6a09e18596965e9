"""Retention: properties over any steps, losses and rules, and the deletion itself."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpoint import layout
from pretrain.checkpoint.retention import local_losses, prune, reasons_to_keep, validation_loss
from pretrain.config.schema import CheckpointConfig
from tests.support.checkpoints import save

STEPS = st.lists(st.integers(1, 60), min_size=1, max_size=20, unique=True)
LOSSES = st.dictionaries(st.integers(1, 60), st.sampled_from([1.0, 1.5, 2.0, 2.5]))
RULES = st.builds(
    CheckpointConfig, keep_last=st.integers(1, 5), keep_every_steps=st.integers(0, 12), keep_best=st.integers(0, 4)
)


@given(STEPS, LOSSES, RULES, st.data())
def test_each_rule_keeps_exactly_its_steps(
    steps: list[int], losses: dict[int, float], rules: CheckpointConfig, data: st.DataObject
) -> None:
    saved = data.draw(st.sampled_from(steps))
    found = reasons_to_keep(steps, losses, rules, saved_step=saved)
    past = sorted(step for step in steps if step <= saved)
    assert list(found) == past
    by_rule = {rule: [step for step in past if rule in found[step]] for rule in ("last", "every", "best")}
    assert by_rule["last"] == past[-rules.keep_last :]
    assert by_rule["every"] == [s for s in past if rules.keep_every_steps and s % rules.keep_every_steps == 0]
    judged = [step for step in past if step in losses]
    assert len(by_rule["best"]) == min(rules.keep_best, len(judged))
    for best in by_rule["best"]:
        better = [step for step in judged if (losses[step], -step) < (losses[best], -best)]
        assert len(better) < rules.keep_best


@given(STEPS, LOSSES, RULES)
def test_the_newest_save_is_always_kept(steps: list[int], losses: dict[int, float], rules: CheckpointConfig) -> None:
    for saved in steps:
        assert "last" in reasons_to_keep(steps, losses, rules, saved_step=saved)[saved]


@given(STEPS, LOSSES, RULES)
def test_saving_and_pruning_step_by_step_never_loses_the_newest_or_the_best_of_all(
    steps: list[int], losses: dict[int, float], rules: CheckpointConfig
) -> None:
    """A checkpoint that is deleted early must not be one that a later rule would keep."""
    held: list[int] = []
    for step in sorted(steps):
        held.append(step)
        known = {saved: losses[saved] for saved in held if saved in losses}
        held = [saved for saved, reasons in reasons_to_keep(held, known, rules, saved_step=step).items() if reasons]
    everything = reasons_to_keep(steps, losses, rules, saved_step=max(steps))
    assert held == [step for step, reasons in everything.items() if reasons]


def test_of_equal_losses_the_newer_is_the_best() -> None:
    rules = CheckpointConfig(keep_last=1, keep_best=1)
    found = reasons_to_keep([1, 2, 3, 4], {1: 2.0, 2: 1.0, 3: 1.0}, rules, saved_step=4)
    assert found == {1: [], 2: [], 3: ["best"], 4: ["last"]}


def test_a_checkpoint_can_be_kept_for_several_reasons() -> None:
    rules = CheckpointConfig(keep_last=1, keep_best=1, keep_every_steps=2)
    assert reasons_to_keep([4], {4: 1.0}, rules, saved_step=4) == {4: ["last", "every", "best"]}


@pytest.mark.parametrize("loss", [None, "1.0", math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_losses(loss: object) -> None:
    assert validation_loss({"validation_loss": loss}) is None
    assert validation_loss({"validation_loss": 2}) == 2.0
    assert validation_loss({}) is None and validation_loss([1]) is None


def test_losses_are_read_from_checkpoints_and_corrupt_ones_have_none(tmp_path: Path) -> None:
    for step, loss in ((1, 2.5), (2, None), (3, 1.5), (4, math.nan)):
        save(tmp_path, step, validation_loss=loss)
    (tmp_path / "step-00000003" / layout.STATE).write_text("{")
    save(tmp_path, 5)
    (tmp_path / "step-00000005" / layout.STATE).write_text(json.dumps([1]))
    assert local_losses(tmp_path) == {1: 2.5}


def test_pruning_deletes_checkpoints_that_no_rule_keeps(tmp_path: Path) -> None:
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.0), (50, 2.0), (60, 2.0)):
        save(tmp_path, step, validation_loss=loss)
    (tmp_path / "notes").mkdir()
    prune(tmp_path, CheckpointConfig(keep_last=2, keep_best=1, keep_every_steps=40), saved_step=60)
    assert layout.list_steps(tmp_path) == [20, 40, 50, 60]
    assert (tmp_path / "notes").is_dir()


def test_pinned_checkpoints_stay_until_they_are_not(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (1, 2, 3)]
    prune(tmp_path, CheckpointConfig(keep_last=1), saved_step=3, pinned=[folders[0]])
    assert layout.list_steps(tmp_path) == [1, 3]
    prune(tmp_path, CheckpointConfig(keep_last=1), saved_step=3)
    assert layout.list_steps(tmp_path) == [3]


def test_a_newer_corrupt_checkpoint_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    """A resume has skipped it: it must not displace good ones, nor vanish before it was inspected."""
    for step in (200, 300):
        save(tmp_path, step)
    (tmp_path / "step-00000300" / layout.MANIFEST).unlink()
    found = layout.find_newest(tmp_path)
    assert found is not None and found[1]["step"] == 200
    save(tmp_path, 250)
    prune(tmp_path, CheckpointConfig(keep_last=1), saved_step=250)
    assert layout.list_steps(tmp_path) == [250, 300]
    newest = layout.find_newest(tmp_path)
    assert newest is not None and newest[1]["step"] == 250
