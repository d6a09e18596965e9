"""A user's mistake: one clear error that names value, rule and hint, exit code 2, nothing started, no traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.processes import pretrain
from tests.support.runs import make_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("bad"))


def refused(*arguments: str | Path) -> str:
    done = pretrain(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith(("error: ", "Usage: "))
    return done.stderr


TRAINING_MISTAKES = {
    "unknown key": (["optimizer.learning_rate=1"], ["optimizer.learning_rate", "known key", "hint"]),
    "wrong type": (["schedule.total_steps=many"], ["schedule.total_steps='many'", "integer"]),
    "no key=value": (["steps"], ["'steps'", "key=value"]),
    "no source": (["data.train=null"], ["data.train", "hint: data.train.web.path=DIR"]),
    "missing shards": (["data.train.a.path=/nowhere/at/all"], ["/nowhere/at/all", "pretrain tokenizer encode"]),
    "a smaller vocabulary": (["model.vocab_size=100"], ["vocabulary of 128", "only 100", "hint: model.vocab_size=128"]),
    "seq_len does not divide": (["data.seq_len=48"], ["data.seq_len=48", "1024", "hint: data.seq_len="]),
    "seq_len above the model's": (["data.seq_len=128"], ["data.seq_len=128", "max_seq_len=64"]),
    "batch not divided": (["batch.global_batch_size=6"], ["global_batch_size=6", "× 2 processes", "hint"]),
    "missing tokenizer": (["data.tokenizer=/no/tokenizer.model"], ["/no/tokenizer.model", "no such tokenizer"]),
    "options that would break saving": (
        ["engine.precision=bf16", "engine.zero_stage=1", "engine.deepspeed.data_types.grad_accum_dtype=fp32"],
        ["data_types", "hint: engine.zero_stage=2"],
    ),
    "bf16 at stage 0": (["engine.zero_stage=0", "engine.precision=bf16"], ["zero_stage=0", "hint"]),
    "fp16 on CPU": (["engine.precision=fp16"], ["fp16", "CPU", "hint: engine.precision=bf16"]),
    "no checkpoint to resume": (["checkpoint.resume=must"], ["no usable checkpoint", "checkpoint.resume=auto"]),
}


@pytest.mark.parametrize("name", TRAINING_MISTAKES)
def test_a_mistake_in_a_training_is_refused_before_it_starts(name: str, config: Path, tmp_path: Path) -> None:
    overrides, expected = TRAINING_MISTAKES[name]
    error = refused("launch", "local", config, "--nproc", "2", f"run.dir={tmp_path / 'run'}", *overrides)
    assert all(part in error for part in expected), error
    assert not (tmp_path / "run").exists()


def test_held_out_text_that_is_trained_on_is_refused(config: Path) -> None:
    error = refused("train", config, f"data.valid.b.path={config.parent / 'train'}")
    assert "same tokens as training source a" in error


def test_an_error_on_one_rank_says_which(config: Path, tmp_path: Path) -> None:
    """After the checks that are the same on every rank, each speaks for itself."""
    if torch.cuda.is_available():
        pytest.skip("the mistake is a device that is not there")
    command = [sys.executable, "-m", "pretrain.train", str(config), "engine.device=cuda", f"run.dir={tmp_path}"]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error on rank 1: engine.device=cuda" in done.stderr


@pytest.mark.parametrize(
    ("inherited", "said"),
    [({"SLURM_STEP_NUM_TASKS": "4"}, "each would train alone"), ({"RANK": "1"}, "RANK=1 but no WORLD_SIZE")],
)
def test_a_rank_environment_that_no_launcher_made_is_refused(
    inherited: dict[str, str], said: str, config: Path
) -> None:
    command = [sys.executable, "-m", "pretrain.train", str(config)]
    done = subprocess.run(command, env={**os.environ, **inherited}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_several_mistakes_are_reported_together(config: Path) -> None:
    error = refused("train", config, "modle.d_model=3", "optimizer.lr=-1", "data.seq_len=x")
    assert "3 problems" in error
    assert "did you mean model.d_model?" in error or "did you mean model?" in error


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    for command in (["train"], ["config", "show"], ["launch", "local", "--nproc", "2"]):
        assert "nothing.yaml" in refused(*command, tmp_path / "nothing.yaml")


def test_a_tokenizer_that_did_not_make_the_shards_is_refused(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.model"
    other.write_bytes(b"not the one")
    error = refused("train", config, f"data.tokenizer={other}")
    assert "is not the tokenizer that encoded" in error and "sha256" in error


@pytest.mark.parametrize(
    "damage", ["no manifest", "broken manifest", "no table", "table cut", "shard gone", "shard cut", "index cut"]
)
def test_damaged_shards_are_refused(damage: str, config: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(config.parent / "train", shards)
    name = "shard-000000.tar"
    if damage == "no manifest":
        (shards / "manifest.json").unlink()
    elif damage == "broken manifest":
        (shards / "manifest.json").write_text("{")
    elif damage in ("shard gone", "no table"):
        (shards / (name if damage == "shard gone" else "shards.npy")).unlink()
    elif damage == "table cut":
        os.truncate(shards / "shards.npy", 200)
    else:
        path = shards / (name if damage == "shard cut" else name.replace(".tar", ".idx.npy"))
        path.write_bytes(path.read_bytes()[:-8])
    error = refused("train", config, f"data.train.a.path={shards}", f"run.dir={tmp_path / 'run'}")
    assert str(shards) in error and "hint" in error


def test_a_run_that_a_checkpoint_does_not_fit_is_refused_with_what_differs(config: Path, tmp_path: Path) -> None:
    short = (f"run.dir={tmp_path}", "schedule.total_steps=6")
    assert pretrain("train", config, *short).returncode == 0
    error = refused("train", config, *short, "model.d_ff=112", "data.seed=5")
    assert "model.d_ff: 96 → 112" in error and "seed: 0 → 5" in error and "run.dir" in error
    assert "never" in refused("train", config, *short, "checkpoint.resume=never")


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    error = refused(
        *("tokenizer", "train", "--input", tmp_path / "corpus", "--vocab-size", "400", "--output", tmp_path / "tok")
    )
    assert str(tmp_path / "corpus") in error
    assert not (tmp_path / "tok").exists()


def test_export_and_generate_refuse_what_is_no_run(tmp_path: Path) -> None:
    assert "does not exist" in refused("export", tmp_path / "nothing", tmp_path / "out")
    assert "does not exist" in refused("generate", tmp_path / "nothing", "text")
    (tmp_path / "empty").mkdir()
    assert "no checkpoint" in refused("export", tmp_path / "empty", tmp_path / "out")


def test_quickstart_does_not_touch_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    assert "not an earlier quickstart" in refused("quickstart", "--out", tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"
