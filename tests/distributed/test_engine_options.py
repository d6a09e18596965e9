"""Precision, accumulation, activation checkpointing and the number of processes: what may change a loss and what may not."""

from pathlib import Path

import pytest

from tests.support.processes import losses, pretrain
from tests.support.runs import make_run

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
