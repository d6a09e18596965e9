"""One GPU: every stage trains, saves and resumes there; what only a GPU can tell."""

from pathlib import Path

import pytest
import torch

from tests.support.processes import losses, pretrain
from tests.support.runs import make_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (0, "fp32"),
        (1, "fp32"),
        (2, "fp32"),
        (3, "fp32"),
        (1, "bf16"),
        (2, "bf16"),
        (3, "bf16"),
        (1, "fp16"),
        (3, "fp16"),
    ],
)
def test_a_stage_trains_and_resumes_bitwise(stage: int, precision: str, tmp_path: Path) -> None:
    config = make_run(tmp_path, engine={"zero_stage": stage, "precision": precision, "device": "cuda"})
    whole, parts = f"run.dir={tmp_path / 'whole'}", f"run.dir={tmp_path / 'parts'}"
    assert pretrain("train", config, whole).returncode == 0
    for total in (14, 30):  # the schedule is constant, so that a shorter run is the beginning of the longer
        done = pretrain("train", config, parts, "schedule.kind=constant", f"schedule.total_steps={total}")
        assert done.returncode == 0, done.stdout + done.stderr
    assert pretrain("train", config, whole + "-constant", "schedule.kind=constant").returncode == 0
    assert losses(tmp_path / "parts" / "metrics.jsonl") == losses(tmp_path / "whole-constant" / "metrics.jsonl")
    found = list(losses(tmp_path / "whole" / "metrics.jsonl").values())
    assert found[-1] < 0.8 * found[0]
