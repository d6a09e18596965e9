"""`pretrain evaluate`: what is wrong is said in one error with exit code 2, before any process starts."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result

from pretrain.checkpoint.pieces import piece_key
from pretrain.cli import cmd_evaluate as evaluate_command
from pretrain.cli.cmd_evaluate import QUIET_AND_OFFLINE, evaluate
from pretrain.config.load import config_text
from pretrain.config.schema import Config, DataConfig, SourceConfig
from pretrain.convert.export_hf import export_hf
from pretrain.errors import UserError
from tests.support.checkpoints import save
from tests.support.shards import write_corpus
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import memory_source

VOCAB = 1_009


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command changes its process, which here is that of all tests."""
    for name, value in QUIET_AND_OFFLINE.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(sentencepiece_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, a run that was measured on them, and its export."""
    folder = tmp_path_factory.mktemp("place")
    digest = hashlib.sha256(sentencepiece_model.read_bytes()).hexdigest()
    for name, options in {
        "valid": {"tokenizer_sha256": digest},
        "strange": {"tokenizer_sha256": "ab" * 32},
        "foreign": {},
        "large": {"tokenizer_sha256": digest, "vocab_size": 2_000},
    }.items():
        write_corpus(folder / name, 300, **{"vocab_size": VOCAB, **options})
    source = memory_source(sentencepiece_model, seq_len=32)
    export_hf(source, folder / "export")
    data = DataConfig(
        train={"a": SourceConfig("elsewhere")}, valid={"b": SourceConfig(str(folder / "valid"))}, seq_len=32
    )
    for run, config in {"run": data, "moved": replace(data, valid={"b": SourceConfig("shards/of/yesterday")})}.items():
        pieces = {piece_key("fp32", 0, name): tensor.flatten() for name, tensor in source.tensors.items()}
        saved = config_text(Config(model=source.config.model, data=config)).encode()
        save(folder / run / "checkpoints", 7, safetensors.torch.save(pieces), config=saved, tokens=0)
    (folder / "empty" / "checkpoints").mkdir(parents=True)
    shutil.copytree(folder / "export", folder / "bert")
    (folder / "bert" / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    return folder


def invoked(place: Path, arguments: Sequence[str]) -> Result:
    return CliRunner().invoke(evaluate, [part.replace("@", f"{place}/") for part in arguments])


def refused(place: Path, arguments: Sequence[str]) -> str:
    """The message of a refusal."""
    done = invoked(place, arguments)
    if isinstance(done.exception, UserError):
        assert done.exception.exit_code == 2
        return str(done.exception)
    assert done.exit_code == 2, (done.output, done.exception)
    return done.output


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no such run": (["@nothing"], ["nothing does not exist"]),
    "no checkpoint": (["@empty"], ["holds no checkpoint", "hint: train first"]),
    "no such step": (["@run", "--step", "8"], ["no step 8", "hint: saved steps: 7"]),
    "a step of a directory": (["@export", "--step", "8", "--data", "b=@valid"], ["8", "no other steps"]),
    "another architecture": (["@bert", "--data", "b=@valid"], ["bert"]),
    "a directory without data": (["@export"], ["has no held-out sources", "hint: --data NAME=SHARDS"]),
    "no name": (["@run", "--data", "@valid"], ["is not NAME=SHARDS"]),
    "a name that is a path": (["@run", "--data", "a/b=@valid"], ["is not NAME=SHARDS"]),
    "a name twice": (["@run", "--data", "b=@valid", "--data", "b=@foreign"], ["'b' is given twice"]),
    "no shards": (["@run", "--data", "b=@nowhere"], ["nowhere"]),
    "moved shards": (["@moved"], ["shards/of/yesterday", "where the run was started", "--data NAME=SHARDS"]),
    "another tokenizer": (
        ["@export", "--data", "b=@valid", "--data", "c=@strange", "--seq-len", "32"],
        ["\n  - c (", "another tokenizer: sha256 abababababab…, not", "hint: encode them"],
    ),
    "tasks without a tokenizer": (
        ["@run", "--tasks", "good", "--tasks-path", "@tasks"],
        ["without a tokenizer", "hint: train with data.tokenizer=FILE"],
    ),
    "shards without a tokenizer": (
        ["@export", "--data", "c=@foreign", "--seq-len", "32"],
        ["without a tokenizer", "index it again with --tokenizer"],
    ),
    "a larger vocabulary": (["@run", "--data", "c=@large"], ["vocabulary of 2000", "the model has 1009"]),
    "two misfits at once": (
        ["@export", "--seq-len", "32", "--data", "c=@strange", "--data", "d=@large"],
        ["\n  - c (", "\n  - d ("],
    ),
    "longer than the model reads": (
        ["@run", "--seq-len", "256"],
        ["--seq-len 256", "max_seq_len=128", "hint: --seq-len 128"],
    ),
    "blocks that are not divided": (["@run", "--seq-len", "48"], ["--seq-len 48", "64", "hint: --seq-len"]),
    "no processes": (["@run", "--nproc", "0"], ["--nproc", "0"]),
    "no sequences": (["@run", "--max-sequences", "0"], ["--max-sequences"]),
    "no batch": (["@run", "--micro-batch-size", "0"], ["--micro-batch-size"]),
    "no threads": (["@run", "--threads", "0"], ["--threads"]),
    "another dtype": (["@run", "--dtype", "fp64"], ["fp64", "bf16"]),
    "a folder for JSON that is not there": (["@run", "--json", "@no/such/file.json"], ["no/such/file.json", "folder"]),
    "JSON into a folder": (["@run", "--json", "@valid"], ["valid", "is a folder"]),
    "a path without tasks": (["@run", "--tasks-path", "@valid"], ["--tasks-path needs --tasks"]),
    "a path that is not there": (["@run", "--tasks", "x", "--tasks-path", "@no"], ["no: no such folder"]),
    "an unknown task": (["@run", "--tasks", "x,y", "--tasks-path", "@tasks"], ["no task x, y", "it has broken, good"]),
    "a task without its data": (
        ["@export", "--tasks", "broken", "--tasks-path", "@tasks"],
        ["broken", "nowhere.jsonl"],
    ),
}


@pytest.fixture(scope="module")
def tasks(place: Path) -> None:
    (place / "tasks").mkdir()
    (place / "tasks" / "good.jsonl").write_text('{"q": "a", "a": "b"}\n')
    for name, file in (("good", place / "tasks/good.jsonl"), ("broken", place / "nowhere.jsonl")):
        (place / "tasks" / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
            'output_type: loglikelihood\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\n'
        )


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_error_before_anything_starts(
    mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def started(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("something was started")

    monkeypatch.setattr(evaluate_command, "run_processes", started)
    monkeypatch.setattr("pretrain.evaluation.worker._score_held_out", started)
    monkeypatch.chdir(tmp_path)
    arguments, expected = MISTAKES[mistake]
    message = refused(place, arguments)
    assert all(part in message for part in expected), message
    if "--nproc" not in arguments:  # as well for several
        assert refused(place, [*arguments, "--nproc", "2"]) == message


def test_what_is_right_is_not_refused(place: Path) -> None:
    for arguments in (["@run"], ["@run", "--data", "c=@valid"], ["@export", "--data", "c=@valid", "--seq-len", "32"]):
        done = invoked(place, [*arguments, "--json", "@found.json"])
        assert done.exit_code == 0, done.exception
        assert json.loads((place / "found.json").read_text())["held_out"]["sequences"] == 10


def test_weights_that_are_not_finite_are_refused(place: Path) -> None:
    shutil.copytree(place / "run", place / "broken")
    folder = place / "broken/checkpoints/step-00000007"
    pieces = safetensors.torch.load_file(folder / "rank-00000.safetensors")
    pieces[piece_key("fp32", 0, "blocks.1.attention.key.weight")][5] = torch.nan
    config = (folder / "config.yaml").read_bytes()
    save(place / "broken/checkpoints", 8, safetensors.torch.save(pieces), config=config, tokens=0)
    message = refused(place, ["@broken"])
    assert "blocks.1.attention.key.weight of step 8 holds numbers that are not finite" in message
    assert "hint: choose an earlier step: --step" in message
    assert invoked(place, ["@broken", "--step", "7"]).exit_code == 0


@pytest.mark.usefixtures("tasks")
def test_without_the_harness_the_hint_is_how_to_install_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    message = refused(place, ["@run", "--tasks", "good", "--tasks-path", "@tasks"])
    assert "lm-evaluation-harness" in message
    assert "hint: pip install 'pretrain-toolkit[eval]'" in message


def test_more_processes_than_devices_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    message = refused(place, ["@run", "--nproc", "3"])
    assert "--nproc 3" in message
    assert "2 CUDA devices" in message
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no CUDA device" in refused(place, ["@run", "--device", "cuda"])


def test_looking_at_the_help_loads_nothing_heavy() -> None:
    program = (
        "import json, sys; from pretrain.cli.cmd_evaluate import evaluate\n"
        "try: evaluate(['--help'])\nexcept SystemExit: print(json.dumps(sorted(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.split(".")[0] for name in json.loads(ended.stdout.splitlines()[-1])}
    assert loaded & {"torch", "numpy", "lm_eval", "rich", "omegaconf"} == set()
