"""What the quickstart leaves is what it says, and what others can use."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from safetensors import safe_open

from pretrain.run_folder import RunFolder
from pretrain.training.metrics import read_lines


def test_every_folder_is_where_the_summary_says(workplace: Path) -> None:
    out = workplace / "quickstart"
    for name in (
        "tokenizer/tokenizer.model",
        "shards/train/manifest.json",
        "shards/valid/manifest.json",
        "run/config.yaml",
        "run/metrics.jsonl",
        "run/tensorboard",
        "run/logs",
        "run/checkpoints/step-00000024/manifest.json",
        "export/model.safetensors",
    ):
        assert (out / name).exists(), name
    assert RunFolder(out / "run").status() == "done"


def test_metrics_hold_one_line_a_step_across_the_kill(workplace: Path) -> None:
    lines = read_lines(workplace / "quickstart/run/metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert {"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_second", "samples"} <= set(lines[0])
    assert list((workplace / "quickstart/run/logs").glob("replaced-*-metrics.jsonl"))
    assert "kill -9" in (workplace / "quickstart.log").read_text()


def test_validation_improves(workplace: Path) -> None:
    evaluations = read_lines(workplace / "quickstart/run/evaluations.jsonl")
    assert evaluations[-1]["bits_per_byte"] < 0.9 * evaluations[0]["bits_per_byte"]


# webdataset leaves the last shard's file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_tools_read_the_shards(workplace: Path) -> None:
    shards = sorted((workplace / "quickstart/shards/train").glob("*.tar"))
    table = np.load(shards[0].parent / "shards.npy")
    assert len(shards) == len(table)
    for shard, row in zip(shards, table, strict=True):
        listing = subprocess.run(["tar", "tf", shard], capture_output=True, text=True, check=True).stdout.split()
        assert all(name.endswith((".tok.npy", ".doc.npy")) for name in listing)
        samples = list(webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False))
        assert len(samples) == row["blocks"]


def test_the_export_holds_the_weights_and_its_proof(workplace: Path) -> None:
    proof = json.loads((workplace / "quickstart/export/proof.json").read_text())
    assert proof["logits"]["max_abs_difference"] <= 1e-5
    assert proof["tokenizer"]["strings"] >= 500
    with safe_open(workplace / "quickstart/export/model.safetensors", framework="pt") as tensors:
        assert all(torch.isfinite(tensors.get_tensor(name)).all() for name in tensors.keys())  # noqa: SIM118


def test_tensorboard_reads_the_scalars(workplace: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(workplace / "quickstart/run/tensorboard")).Reload()
    assert {"train/loss", "train/lr", "valid/bits_per_byte"} <= set(board.Tags()["scalars"])
    steps = [event.step for event in board.Scalars("train/loss")]
    assert steps == list(range(1, 25))
