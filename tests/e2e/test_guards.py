"""A batch that spoils the training: back to the newest checkpoint, over it, and on; also where a kill comes between."""

import random
from pathlib import Path

import pytest

from pretrain.checkpoint.layout import list_steps
from pretrain.run_folder import RunFolder
from pretrain.training.metrics import read_lines
from tests.support.chaos_run import Death, differences, disturbed, leftovers, undisturbed
from tests.support.prefork import Prefork, prefork_fixture  # noqa: F401
from tests.support.processes import losses, start_ranks
from tests.support.runs import make_run

TOTAL, BATCH, BAD_STEP = 36, 8, 22
FIRST = BATCH * (BAD_STEP - 1)
NAN, SPIKE = (f"poison:sample={FIRST + 3},factor={factor}" for factor in ("nan", "30"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guards")
    return make_run(
        folder,
        schedule={"total_steps": TOTAL, "warmup_steps": 5},
        checkpoint={"every_steps": 5, "keep_last": 2},
        guard={"on_nonfinite": "rollback", "on_spike": "rollback", "spike_window_steps": 16},
        engine={"zero_stage": 2, "precision": "fp32", "device": "cpu", "threads_per_process": 1},
        data={
            "train": {"a": {"path": str(folder / "train")}},
            **{"seq_len": 32, "lanes": 8, "span": 4, "audit": True},
        },
    )


def end(
    config: Path, prefork: Prefork, folder: Path, *overrides: str, chaos: str, nproc: int = 1
) -> tuple[set[int], str]:
    """Exit codes of a run, and what its rank 0 said to stderr."""
    overrides = (f"run.dir={folder}", *overrides)
    processes = start_ranks(config, nproc, *overrides, logs=folder.parent / "logs", chaos=chaos, prefork=prefork)
    codes = {process.wait(240) for process in processes}
    return codes, (folder.parent / "logs" / "0.txt").read_text()


SOME = [(0, 1), (2, 2)]
OTHERS = [pytest.param(stage, ranks, marks=pytest.mark.slow) for stage, ranks in ((1, 2), (2, 1), (3, 1), (3, 2))]


@pytest.mark.parametrize("poison", [NAN, SPIKE])
@pytest.mark.parametrize(("stage", "ranks"), [*SOME, *OTHERS])
def test_a_bad_batch_is_jumped_over_and_training_goes_on(
    stage: int, ranks: int, poison: str, config: Path, prefork: Prefork, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    codes, said = end(config, prefork, run.path, f"engine.zero_stage={stage}", chaos=poison, nproc=ranks)
    assert codes == {0}, said
    (jump,) = run.read_skipped()
    assert jump[:3] == (FIRST, BATCH, BAD_STEP)
    lines, audit = read_lines(run.metrics), read_lines(run.audit)
    assert [line["step"] for line in lines] == [line["step"] for line in audit] == list(range(1, TOTAL + 1))
    # No sequence is read twice, and all but those of the bad batch are read.
    starts = [sample for sample in range(0, BATCH * (TOTAL + 1), BATCH) if sample != FIRST]
    assert [line["samples"] for line in audit] == starts
    assert lines[-1]["samples"] == BATCH * (TOTAL + 1)
    found = losses(run.metrics)
    assert max(found[step] for step in range(BAD_STEP, TOTAL + 1)) < found[BAD_STEP - 5]
    said = (run.logs / "train.log").read_text()
    assert f"back to step {BAD_STEP - 2}; samples {FIRST} to {FIRST + BATCH - 1} are skipped" in said
    assert leftovers(run) == []


@pytest.mark.parametrize(
    "point", ["jump", *(pytest.param(point, marks=pytest.mark.slow) for point in ("rollback", "forward"))]
)
@pytest.mark.parametrize(("stage", "ranks"), [(2, 1), *OTHERS])
def test_a_kill_between_the_jump_and_the_next_checkpoint_changes_nothing(
    stage: int, ranks: int, point: str, config: Path, prefork: Prefork, tmp_path: Path
) -> None:
    """`forward`: in the step that is taken in place of the bad one."""
    begun = {"jump": 1, "rollback": 2, "forward": (BAD_STEP + 1) * BATCH // 2 // ranks}
    model = undisturbed(config, ranks, tmp_path / "model", f"engine.zero_stage={stage}", chaos=NAN, prefork=prefork)
    death = Death(point, count=begun[point])
    story = disturbed(
        *(config, stage, ranks, tmp_path / "run", iter([death])),
        kills=1,
        draw=random.Random(0),
        damage=0,
        chaos=NAN,
        prefork=prefork,
    )
    assert [life.resumed for life in story.lives] == [0, BAD_STEP - 2]
    assert story.problems + differences(RunFolder(tmp_path / "run"), model) == []


def test_a_run_that_rolls_back_too_often_ends(config: Path, prefork: Prefork, tmp_path: Path) -> None:
    run, chaos = RunFolder(tmp_path / "run"), " ".join(f"poison:sample={8 * step},factor=nan" for step in (7, 9, 14))
    codes, said = end(config, prefork, run.path, "guard.max_rollbacks=2", chaos=chaos)
    assert codes == {3}
    assert "is nan" in said and "hint: guard.max_rollbacks=2 is reached" in said
    assert [jump.first for jump in run.read_skipped()] == [8 * 7, 8 * 9]
    assert run.status() == "failed"


def test_a_bad_batch_before_the_first_checkpoint_ends_the_run(config: Path, prefork: Prefork, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    codes, said = end(config, prefork, run.path, chaos="poison:sample=16,factor=nan")
    assert codes == {3} and "hint: no checkpoint yet to roll back to" in said
    assert run.status() == "failed" and run.read_skipped() == []


@pytest.mark.parametrize(("poison", "reason"), [(NAN, "is nan"), (SPIKE, "the limit")])
def test_without_rollback_a_bad_batch_stops_the_run(
    poison: str, reason: str, config: Path, prefork: Prefork, tmp_path: Path
) -> None:
    run, stop = RunFolder(tmp_path / "run"), ("guard.on_nonfinite=stop", "guard.on_spike=stop")
    codes, said = end(config, prefork, run.path, *stop, chaos=poison)
    assert codes == {3}
    assert f"error: step {BAD_STEP}: " in said and reason in said and "hint: lower optimizer.lr" in said
    assert run.status() == "failed" and run.read_skipped() == []
    assert list(losses(run.metrics)) == list(range(1, BAD_STEP))
    assert list_steps(run.checkpoints) == [15, 20]
