"""Precision, accumulation, activation checkpointing and the number of processes: what may change a loss and what may not."""

from pathlib import Path

import pytest

from pretrain.training.metrics import read_lines
from tests.support.processes import losses, pretrain, train
from tests.support.runs import EAGER_ZERO3, make_run

STEPS = ("schedule.total_steps=10",)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("options"))


def run_losses(config: Path, folder: Path, *overrides: str) -> list[float]:
    done = pretrain("train", config, f"run.dir={folder}", *STEPS, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    return list(losses(folder / "metrics.jsonl").values())


@pytest.fixture(scope="module")
def baseline(config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return run_losses(config, tmp_path_factory.mktemp("baseline"))


def test_activation_checkpointing_changes_no_bit(config: Path, baseline: list[float], tmp_path: Path) -> None:
    assert run_losses(config, tmp_path / "all", "engine.activation_checkpoint_every=1") == baseline
    assert run_losses(config, tmp_path / "second", "engine.activation_checkpoint_every=2") == baseline


def test_accumulation_gives_the_loss_of_one_large_batch(config: Path, baseline: list[float], tmp_path: Path) -> None:
    assert run_losses(config, tmp_path, "batch.micro_batch_size=8") == pytest.approx(baseline, abs=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_stays_near_fp32(stage: int, config: Path, baseline: list[float], tmp_path: Path) -> None:
    found = run_losses(config, tmp_path, "engine.precision=bf16", f"engine.zero_stage={stage}")
    assert found == pytest.approx(baseline, abs=0.02)
    assert found != baseline


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_compiled_blocks_give_the_same_losses(stage: int, config: Path, baseline: list[float], tmp_path: Path) -> None:
    found = run_losses(config, tmp_path, "engine.compile=true", f"engine.zero_stage={stage}")
    assert found == pytest.approx(baseline, abs=1e-4)


def test_what_large_models_use_works_together(config: Path, tmp_path: Path) -> None:
    """ZeRO-3, bf16, recomputation, and an evaluation whose sequences do not divide among the ranks."""
    large = (
        *("engine.zero_stage=3", "engine.precision=bf16", "engine.activation_checkpoint_every=1"),
        *("eval.every_steps=5", "eval.max_sequences=7", "batch.micro_batch_size=2"),
        *(
            f"engine.deepspeed.zero_optimization.{key}={value}"
            for key, value in EAGER_ZERO3["zero_optimization"].items()
        ),
    )
    train(config, 2, f"run.dir={tmp_path / 'two'}", *STEPS, *large)
    train(config, 1, f"run.dir={tmp_path / 'one'}", *STEPS, *large)
    two, one = (read_lines(tmp_path / name / "evaluations.jsonl") for name in ("two", "one"))
    assert [line["step"] for line in two] == [0, 5, 10]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=0.01)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], abs=1e-6)
    assert two[-1]["loss"] < two[0]["loss"]
