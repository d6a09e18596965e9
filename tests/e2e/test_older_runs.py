"""A run, a checkpoint and shards of an earlier release are verified, resumed and exported as before."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from pretrain.checkpoint.layout import list_steps
from tests.support.processes import pretrain, train
from tests.support.repository import ROOT

FIXTURE = ROOT / "tests" / "fixtures" / "before_layout"
CHECKPOINT = "run/checkpoints/step-00000004"


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture, as the working directory: its configuration names relative paths."""
    shutil.copytree(FIXTURE, tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")
    return tmp_path / "older"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_its_shards_and_checkpoints_verify(older: Path) -> None:
    for command in (
        ["data", "verify", "shards/train"],
        ["data", "verify", "shards/valid"],
        ["checkpoint", "verify", "run"],
    ):
        done = pretrain(*command)
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_resumes_with_the_same_sequences_and_losses(older: Path) -> None:
    done = train(older / "config.yaml", 2)
    assert "resumed at step 4" in done.stdout
    assert list_steps(older / "run" / "checkpoints") == [4, 8]
    assert (older / "run" / "audit.jsonl").read_bytes() == (older / "expected" / "audit.jsonl").read_bytes()
    found, expected = lines(older / "run" / "metrics.jsonl"), lines(older / "expected" / "metrics.jsonl")
    for name in ("step", "samples", "tokens", "lr", "epoch", "sources"):
        assert [line[name] for line in found] == [line[name] for line in expected], name
    # Equal to the last bit on the processor that made the fixture; another one may sum in another order.
    for name in ("loss", "grad_norm", "z_squared"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=1e-5), name


def test_it_exports_the_same_bytes(older: Path) -> None:
    done = pretrain("export", CHECKPOINT, "export")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (older / "expected" / "export.sha256").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((older / "export" / name).read_bytes()).hexdigest() == digest, name
