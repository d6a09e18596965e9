"""Training that begins with the weights of another run."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pretrain.checkpoint.checkpoint_reader import open_checkpoint
from tests.support.processes import train
from tests.support.runs import make_run


def evaluations(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def change_run(config: Path, **values: str) -> None:
    tree = yaml.safe_load(config.read_text())
    tree["run"] |= values
    config.write_text(yaml.safe_dump(tree))


def test_a_run_begins_where_another_ended(tmp_path: Path) -> None:
    config = make_run(tmp_path, eval={"every_steps": 100}, schedule={"total_steps": 4, "warmup_steps": 1})
    train(config, 1)
    change_run(config, dir=str(tmp_path / "second"), init_from=str(tmp_path / "run"))
    done = train(config, 2, "engine.zero_stage=3", "schedule.total_steps=1", "schedule.warmup_steps=0")
    assert f"from {tmp_path / 'run'}" in done.stdout
    assert "another rotation" not in done.stdout
    ended, began = evaluations(tmp_path / "run")[-1], evaluations(tmp_path / "second")[0]
    assert (ended["step"], began["step"]) == (4, 0)
    assert abs(began["loss"] - ended["loss"]) < 1e-6  # two processes add up in another order
    fresh = evaluations(tmp_path / "run")[0]["loss"]
    assert abs(fresh - ended["loss"]) > 1e-2  # four steps are not nothing


@pytest.mark.slow
def test_it_resumes_without_them_and_says_that_the_rotation_changed(tmp_path: Path) -> None:
    config = make_run(tmp_path, schedule={"total_steps": 2, "warmup_steps": 1})
    train(config, 1)
    change_run(config, dir=str(tmp_path / "second"), init_from=str(tmp_path / "run"))
    done = train(config, 1, "model.rope_theta=40000.0")
    assert "rotary positions differ from run.init_from: model.rope_theta: 10000.0 → 40000.0" in done.stdout
    shutil.rmtree(tmp_path / "run")
    done = train(config, 1, "model.rope_theta=40000.0", "schedule.total_steps=3")
    assert "another rotation" not in done.stdout
    assert open_checkpoint(tmp_path / "second").step == 3
