"""What the ranks really consume, by its audit: the same sequences, whoever reads them, however often they are killed."""

import json
import random
from pathlib import Path

import pytest

from pretrain.checkpoint.layout import list_steps
from tests.support.chaos_run import wait_until
from tests.support.processes import kill_all, losses, pretrain, start, train, wait_for_step
from tests.support.runs import make_run, markov_tokens
from tests.support.shards import write_corpus

TOTAL = 40
STAGE = ("data.stages.anneal.start_step=23", "data.stages.anneal.weights={a: 1, c: 2}")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources, one of them only in the second stage, and a batch that grows; 1, 2, 3 and 4 ranks can share it."""
    folder = tmp_path_factory.mktemp("order")
    for number, name in enumerate(("b", "c")):
        write_corpus(folder / name, markov_tokens(2_001 + 640 * number, 5 + number), vocab_size=128, block_tokens=1024)
    config = make_run(
        folder,
        data={
            "train": {
                "a": {"path": str(folder / "train"), "weight": 3},
                "b": {"path": str(folder / "b"), "weight": 1},
                "c": {"path": str(folder / "c"), "weight": 0},
            },
            "seq_len": 32,
            "lanes": 8,
            "span": 4,
            "audit": True,
            "document_mask": True,
        },
        batch={
            "global_batch_size": 24,
            "micro_batch_size": 1,
            "ramp_start_size": 12,
            "ramp_increment": 12,
            "ramp_steps": 9,
        },
        schedule={"total_steps": TOTAL, "warmup_steps": 5},
        checkpoint={"every_steps": 3, "keep_last": 9},
    )
    return config


def audit(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "audit.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nothing happened to."""
    folder = tmp_path_factory.mktemp("alone")
    train(config, 1, f"run.dir={folder}", *STAGE)
    return folder


def test_the_audit_has_a_line_a_step_and_follows_the_growing_batch(alone: Path) -> None:
    lines = audit(alone)
    assert [line["step"] for line in lines] == list(range(1, TOTAL + 1))
    assert [line["batch"] for line in lines] == [12] * 9 + [24] * 31
    assert [line["samples"] for line in lines] == [sum(line["batch"] for line in lines[:n]) for n in range(TOTAL)]
    assert len({line["digest"] for line in lines}) == TOTAL


def test_one_to_four_ranks_with_kills_between_consume_what_one_rank_does(
    config: Path, alone: Path, tmp_path: Path
) -> None:
    for ranks, until in ((1, random.randint(5, 9)), (2, random.randint(12, 18)), (3, random.randint(21, 29))):
        process = start(config, ranks, f"run.dir={tmp_path}", *STAGE)
        wait_for_step(tmp_path / "metrics.jsonl", until, process)
        kill_all(process)
    train(config, 4, f"run.dir={tmp_path}", *STAGE)
    assert audit(tmp_path) == audit(alone)
    found, expected = losses(tmp_path / "metrics.jsonl"), losses(alone / "metrics.jsonl")
    assert max(abs(found[step] - expected[step]) for step in expected) <= 1e-5


def test_the_ledger_is_in_the_metrics_and_in_the_checkpoint(alone: Path) -> None:
    last = json.loads((alone / "metrics.jsonl").read_text().splitlines()[-1])
    state = json.loads((alone / "checkpoints" / f"step-{TOTAL:08d}" / "state.json").read_text())
    assert state["ledger"] == last["sources"]
    assert sum(used["tokens"] for used in last["sources"].values()) == last["tokens"]
    assert last["sources"]["c"]["epochs"] == last["sources"]["c"]["tokens"] / 32 / 82


def test_weights_may_change_from_here_on_but_not_what_has_been_read(config: Path, alone: Path, tmp_path: Path) -> None:
    run = f"run.dir={tmp_path}"
    plain = ("data.train.c.weight=0.5",)  # another past
    stop = start(config, 2, run, *STAGE)
    wait_until(lambda: list_steps(tmp_path / "checkpoints"), [stop], "a checkpoint")
    kill_all(stop)
    step = list_steps(tmp_path / "checkpoints")[-1]
    refused = pretrain("train", config, run, *STAGE, *plain)
    assert refused.returncode == 2
    assert "does not fit this run" in refused.stderr
    assert f"data.stages.from{step}.start_step={step} " in refused.stderr
    train(
        config, 1, run, "schedule.total_steps=30", f"data.stages.new.start_step={step}", "data.stages.new.weights.c=1"
    )
    lines = audit(tmp_path)
    assert lines[:step] == audit(alone)[:step]
    assert lines[step]["digest"] != audit(alone)[step]["digest"]
    used = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["sources"]
    assert used["c"]["tokens"] == (lines[-1]["samples"] + 24 - lines[step]["samples"]) * 32


def test_a_plan_that_reads_a_source_too_often_is_refused_before_it_starts(config: Path, tmp_path: Path) -> None:
    refused = pretrain(
        "launch", "local", config, "--nproc", "2", f"run.dir={tmp_path}", *STAGE, "data.train.b.max_epochs=1.5"
    )
    assert refused.returncode == 2
    assert "b: " in refused.stderr and "max_epochs=1.5 is reached after" in refused.stderr and "hint:" in refused.stderr
    assert not (tmp_path / "metrics.jsonl").exists()
