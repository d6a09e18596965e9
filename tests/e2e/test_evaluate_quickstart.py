"""What the guide on evaluation promises of the quickstart's model."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import run_in

STEPS = ("schedule.total_steps=120", "eval.every_steps=0", "checkpoint.every_steps=0", "log.tensorboard=false")


@pytest.mark.slow
def test_a_model_that_learned_tells_what_goes_on_from_a_text(workplace: Path) -> None:
    longer = f"pretrain launch local quickstart/run/config.yaml --nproc 2 run.dir=runs/longer {' '.join(STEPS)}"
    make = "python -m pretrain.evaluation.example_task quickstart/corpus/valid.jsonl runs/tasks"
    measure = (
        "pretrain evaluate runs/longer --tasks continuations --tasks-path runs/tasks --nproc 2 --json runs/tasks.json"
    )
    for command in (longer, make, measure):
        done = run_in(workplace, command)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    assert "acc_mutual_info" in done.stdout
    found = json.loads((workplace / "runs/tasks.json").read_text())["tasks"]["continuations"]
    assert found["samples"] == 100
    value, error = (found[kind]["acc_mutual_info"] for kind in ("metrics", "stderr"))
    assert value - 3 * error > 0.25  # of guessing among four
