"""Looking after what a real run saves: its commands, saves of the weights alone, and copies in an object store."""

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import layout
from pretrain.checkpoint.checkpoint_reader import open_checkpoint
from pretrain.checkpoint.remote import RemoteRun, recover
from pretrain.config.schema import StoreConfig
from pretrain.convert.weight_sources import load_decoder
from pretrain.errors import CheckpointError
from tests.support.chaos_run import wait_until
from tests.support.checkpoints import flip_a_bit, save
from tests.support.faulty_proxy import LOOPBACK
from tests.support.flaky_network import FlakyNetwork
from tests.support.object_store import (
    ObjectStore,
    object_store_fixture,  # noqa: F401
)
from tests.support.processes import ENVIRONMENT, kill_all, losses, pretrain, start, train, wait_for_step
from tests.support.runs import make_run

TOTAL = 24
FAST = ("data.store.attempts=2", "data.store.timeout_s=5")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(
        tmp_path_factory.mktemp("saves"),
        schedule={"total_steps": TOTAL, "warmup_steps": 5},
        checkpoint={"every_steps": 4, "keep_last": 2},
    )


@pytest.fixture(scope="module")
def saved(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, with every rule of retention and saves of the weights."""
    run = tmp_path_factory.mktemp("saved")
    rules = ("keep_last=1", "keep_best=1", "keep_every_steps=8", "weights_every_steps=6")
    train(config, 2, f"run.dir={run}", "eval.every_steps=4", *(f"checkpoint.{rule}" for rule in rules))
    return run


# --- on the disk ------------------------------------------------------------------------------------------------------


def test_a_run_keeps_what_its_rules_say_and_ls_says_why(saved: Path) -> None:
    entries = json.loads(pretrain("checkpoint", "ls", saved, "--json").stdout)
    whole = {entry["step"]: entry for entry in entries if not entry["weights_only"]}
    evaluations = [json.loads(line) for line in (saved / "evaluations.jsonl").read_text().splitlines()]
    measured = {entry["step"]: entry["loss"] for entry in evaluations if entry["step"]}
    best = min(measured, key=lambda step: (measured[step], -step))
    assert set(whole) == {8, 16, 24, best}
    assert {step for step, entry in whole.items() if "best" in entry["kept"]} == {best}
    assert {step for step, entry in whole.items() if "every" in entry["kept"]} == {8, 16, 24}
    assert {step for step, entry in whole.items() if "last" in entry["kept"]} == {24}
    for step, entry in whole.items():
        assert entry["state"]["validation_loss"] == measured[step]
        assert entry["state"]["world_size"] == entry["state"]["zero_stage"] == 2
        assert entry["state"]["samples"] == 8 * step and entry["damage"] is None
    assert [entry["step"] for entry in entries if entry["weights_only"]] == [6, 12, 18, 24]
    sizes = {entry["weights_only"]: entry["bytes"] for entry in entries}
    assert sizes[True] < 0.6 * sizes[False]
    assert pretrain("checkpoint", "ls", saved).stdout.count("\n") == 1 + len(entries)


def test_the_weights_alone_are_those_of_the_checkpoint(saved: Path, tmp_path: Path) -> None:
    alone, whole = open_checkpoint(saved, 18), open_checkpoint(saved, 24)
    assert (alone.folder.parent.name, whole.folder.parent.name) == ("weights", "checkpoints")
    assert open_checkpoint(saved).folder == whole.folder
    shutil.copytree(saved / "weights", tmp_path / "weights")
    same = open_checkpoint(tmp_path)
    assert same.step == 24 and same.folder.parent.name == "weights"
    for name in whole.shapes:
        assert torch.equal(same.tensor(name), whole.tensor(name))
        assert not torch.equal(alone.tensor(name), whole.tensor(name))
    ids = torch.arange(16).view(1, 16)
    assert torch.equal(load_decoder(same)(ids), load_decoder(whole)(ids))
    with pytest.raises(CheckpointError, match="no step 7 in") as caught:
        open_checkpoint(saved, 7)
    assert "6, 8, 12, 16, 18, 24" in str(caught.value.hint)


def test_nothing_is_resumed_from_the_weights_alone(saved: Path, config: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "weights", tmp_path / "weights")
    done = pretrain("train", config, f"run.dir={tmp_path}", "checkpoint.resume=must")
    assert done.returncode == 2 and "holds no usable checkpoint" in done.stderr
    shutil.copytree(saved / "weights" / "step-00000018", tmp_path / "checkpoints" / "step-00000018")
    done = pretrain("train", config, f"run.dir={tmp_path}", "checkpoint.resume=must")
    assert done.returncode == 2 and "a weights-only save cannot be resumed" in done.stderr


def test_verify_names_the_damage(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    assert pretrain("checkpoint", "verify", run).returncode == 0
    flip_a_bit(run / "weights" / "step-00000012" / "rank-00001.safetensors")
    done = pretrain("checkpoint", "verify", run)
    assert done.returncode == 1
    assert done.stdout.count("\n") == 2 and "weights/step-00000012/rank-00001.safetensors is corrupt" in done.stdout
    assert "Traceback" not in done.stderr


def test_rm_refuses_while_the_run_trains(config: Path, tmp_path: Path) -> None:
    process = start(config, 1, f"run.dir={tmp_path}", "schedule.total_steps=100000")
    wait_until(lambda: layout.list_steps(tmp_path / "checkpoints"), [process], "a first checkpoint")
    done = pretrain("checkpoint", "rm", tmp_path, "4", "--force")
    listed = pretrain("checkpoint", "ls", tmp_path)
    kill_all(process)
    assert done.returncode == 2 and "is in use by process" in done.stderr
    assert listed.returncode == 0 and "corrupt" not in listed.stdout
    steps = layout.list_steps(tmp_path / "checkpoints")
    assert len(steps) >= 1
    done = pretrain("checkpoint", "rm", tmp_path, *map(str, steps))
    assert done.returncode == 2 and "leaves no checkpoint to resume from" in done.stderr
    assert pretrain("checkpoint", "rm", tmp_path, *map(str, steps), "--force").returncode == 0
    assert layout.list_steps(tmp_path / "checkpoints") == []


# --- in an object store -----------------------------------------------------------------------------------------------


@pytest.fixture(name="network", scope="module")
def network_fixture(object_store: ObjectStore) -> Iterator[FlakyNetwork]:
    """A bucket, and the way to it that all commands take."""
    network = FlakyNetwork(object_store.port)
    object_store.file_system(object_store.port).mkdir("runs")
    yield network
    network.stop()


@pytest.fixture(name="remote")
def remote_fixture(
    object_store: ObjectStore, network: FlakyNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RemoteRun:
    """What lies at an address that no other test has."""
    network.drop, network.down, network.stalled = 0.0, False, False
    for name, value in {**object_store.environment, "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{network.port}"}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(ENVIRONMENT, name, value)
    return RemoteRun(f"s3://runs/{tmp_path.name}", StoreConfig(attempts=3, timeout_s=10))


def steps(remote: RemoteRun, kind: str = "checkpoints") -> list[int]:
    return [step for step, names in remote.list_saves(kind).items() if layout.MANIFEST in names]


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    run = tmp_path_factory.mktemp("undisturbed")
    train(config, 2, f"run.dir={run}")
    return losses(run / "metrics.jsonl")


def test_a_run_whose_disk_is_lost_goes_on_from_the_store(
    config: Path, remote: RemoteRun, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    """Killed at a random step; the new machine has nothing but the command, and need not be as large."""
    run = tmp_path / "run"
    overrides = (f"run.dir={run}", f"checkpoint.upload={remote.address}", *FAST)
    process = start(config, 2, *overrides, "checkpoint.weights_every_steps=4")
    wait_for_step(run / "metrics.jsonl", random.randint(6, TOTAL - 6), process)
    while not steps(remote) and process.poll() is None:
        time.sleep(0.05)
    kill_all(process)
    first = losses(run / "metrics.jsonl")
    shutil.rmtree(run)
    newest = steps(remote)[-1]
    done = train(config, 2, *overrides, "checkpoint.resume=must")
    assert f"fetching step {newest} from {remote.address}" in done.stdout
    assert f"resumed at step {newest}" in done.stdout
    assert first | losses(run / "metrics.jsonl") == undisturbed
    assert layout.list_steps(run / "checkpoints") == [TOTAL - 4, TOTAL]
    # A checkpoint that a newer one overtakes while another is copied is left out of the store.
    assert steps(remote)[-1] == TOTAL and len(steps(remote)) <= 2
    assert set(steps(remote, "weights")) <= set(range(4, TOTAL + 1, 4))
    assert f"uploaded {remote.address}/checkpoints/step-000000{TOTAL}" in (run / "logs" / "train.log").read_text()


def test_what_comes_from_the_store_is_held_against_the_run_and_its_hashes(
    config: Path, remote: RemoteRun, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = (f"run.dir={run}", f"checkpoint.upload={remote.address}", "schedule.total_steps=8", *FAST)
    train(config, 1, *overrides)
    shutil.rmtree(run)
    done = pretrain("train", config, *overrides, "checkpoint.resume=never")
    assert done.returncode == 2 and f"{remote.address} holds a checkpoint of step 8" in done.stderr
    done = pretrain("train", config, *overrides, "model.n_layers=1")
    assert done.returncode == 2 and "does not fit this run" in done.stderr
    shutil.rmtree(run)
    flip_in_the_store(remote, "checkpoints/step-00000008/rank-00000.safetensors")
    done = train(config, 1, *overrides)
    assert "step-00000008/rank-00000.safetensors is corrupt" in done.stdout
    assert "resumed at step 4" in done.stdout
    shutil.rmtree(run)
    assert "resumed at step 8" in train(config, 1, *overrides).stdout  # the corrupt one was saved and uploaded again


def flip_in_the_store(remote: RemoteRun, name: str) -> None:
    data = bytearray(remote.read_range(name, 0, remote.size(name)))
    data[-5] ^= 1
    remote._files.pipe_file(remote._path(name), bytes(data))


def test_a_new_run_starts_from_scratch_and_must_does_not(config: Path, remote: RemoteRun, tmp_path: Path) -> None:
    overrides = (f"run.dir={tmp_path / 'run'}", f"checkpoint.upload={remote.address}", "schedule.total_steps=6", *FAST)
    done = pretrain("train", config, *overrides, "checkpoint.resume=must")
    assert done.returncode == 2 and "holds no usable checkpoint" in done.stderr
    assert "from scratch" in train(config, 1, *overrides, "checkpoint.resume=never").stdout
    assert steps(remote) == [4, 6]


def test_a_store_that_is_gone_stops_no_training_and_is_loud(
    config: Path, remote: RemoteRun, network: FlakyNetwork, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    overrides = (f"run.dir={tmp_path}", f"checkpoint.upload={remote.address}", *FAST)
    process = start(config, 2, *overrides)
    wait_for_step(tmp_path / "metrics.jsonl", 1, process)
    network.down = True
    assert process.wait(120) == 0
    assert (tmp_path / "status").read_text() == "done\n" and losses(tmp_path / "metrics.jsonl") == undisturbed
    log = (tmp_path / "logs" / "train.log").read_text()
    assert f"upload failed: {remote.address}/checkpoints" in log and "retrying after the next checkpoint" in log
    left = f"not uploaded to {remote.address}: checkpoints/step-000000{TOTAL}; run the same command again to retry"
    assert left in log
    network.down = False
    assert TOTAL not in steps(remote)
    train(config, 2, *overrides)
    assert steps(remote)[-1] == TOTAL


def test_what_is_being_uploaded_outlives_its_time_and_then_goes(
    config: Path, remote: RemoteRun, network: FlakyNetwork, tmp_path: Path
) -> None:
    """Step 4 is on its way while all others are saved; those between are overtaken."""
    overrides = (f"run.dir={tmp_path}", f"checkpoint.upload={remote.address}", "checkpoint.keep_last=1")
    process = start(config, 1, *overrides, "data.store.timeout_s=60")
    wait_for_step(tmp_path / "metrics.jsonl", 1, process)
    network.stalled = True
    wait_for_step(tmp_path / "metrics.jsonl", TOTAL, process)
    while f"step-000000{TOTAL}" not in (tmp_path / "logs" / "train.log").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    assert 4 in layout.list_steps(tmp_path / "checkpoints")
    network.stalled = False
    assert process.wait(120) == 0
    log = (tmp_path / "logs" / "train.log").read_text()
    uploaded = [line.rpartition("step-")[2] for line in log.splitlines() if "  uploaded s3" in line]
    assert uploaded == ["00000004", f"000000{TOTAL}"]
    assert layout.list_steps(tmp_path / "checkpoints") == steps(remote) == [TOTAL]


CREDENTIALS = {
    "a wrong secret": {"AWS_SECRET_ACCESS_KEY": "wrong"},
    "nobody listens": {"AWS_ENDPOINT_URL": f"http://{LOOPBACK}:9"},
}


@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_fresh_start_that_cannot_ask_the_store_is_one_error(
    name: str, config: Path, remote: RemoteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might hold the checkpoint to go on from: starting from scratch would be wrong."""
    for key, value in CREDENTIALS[name].items():
        monkeypatch.setitem(ENVIRONMENT, key, value)
    done = pretrain("train", config, f"run.dir={tmp_path / 'run'}", f"checkpoint.upload={remote.address}", *FAST)
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.startswith(f"error: {remote.address}/checkpoints")
        and "hint: check checkpoint.upload" in done.stderr
    )
    assert layout.list_steps(tmp_path / "run" / "checkpoints") == []


def test_an_address_that_cannot_be_written_to_is_refused_before_the_start(config: Path, tmp_path: Path) -> None:
    done = pretrain(
        "launch", "local", config, "--nproc", "2", f"run.dir={tmp_path / 'run'}", "checkpoint.upload=backup"
    )
    assert done.returncode == 2 and "checkpoint.upload=backup is not one of s3://" in done.stderr
    assert not (tmp_path / "run").exists()


def test_large_files_pass_a_network_that_drops_connections(
    remote: RemoteRun, network: FlakyNetwork, tmp_path: Path
) -> None:
    """In several parts, each of which is sent again by itself."""
    checkpoints = tmp_path / "run" / "checkpoints"
    folder = save(checkpoints, 100, os.urandom(1 << 20) * 120)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    remote = RemoteRun(remote.address, StoreConfig(attempts=12, timeout_s=30))
    network.drop, network.bytes_before = 0.4, 30 << 20
    remote.upload(folder, before[layout.MANIFEST], {}, lambda: None)
    assert network.dropped > 0
    layout.remove(folder)
    assert recover(remote, checkpoints, 1, lambda reason: pytest.fail(reason)) == (folder, {"step": 100})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_empty_object_is_no_manifest(remote: RemoteRun, tmp_path: Path) -> None:
    """S3 answers the first bytes of nothing with an error, which would look like a store that fails."""
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (100, 200):
        folder = save(checkpoints, step)
        remote.upload(folder, (folder / layout.MANIFEST).read_bytes(), {}, lambda: None)
        layout.remove(folder)
    remote._files.pipe_file(remote._path(f"checkpoints/step-00000200/{layout.MANIFEST}"), b"")
    reasons: list[str] = []
    found = recover(remote, checkpoints, 1, reasons.append)
    assert found is not None and found[1] == {"step": 100}
    assert len(reasons) == 1 and "step-00000200: not a complete checkpoint" in reasons[0]
