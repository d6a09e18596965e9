"""`pretrain evaluate` on a run and on its export: the same number, in any number of processes, to the last bit."""

import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from launch.processes import descendants
from pretrain.checkpoint.checkpoint_reader import open_checkpoint
from pretrain.cli.cmd_evaluate import evaluate
from pretrain.config.schema import SourceConfig
from pretrain.convert.export_hf import export_hf
from pretrain.convert.weight_sources import load_decoder
from pretrain.data.documents import mark_documents
from pretrain.data.source import Source
from pretrain.evaluation.request import EvaluationRequest, open_request
from pretrain.training.metrics import read_lines
from tests.support.chaos_run import wait_until
from tests.support.processes import ENVIRONMENT, train
from tests.support.runs import EAGER_ZERO3, make_run
from tests.support.shards import BOS, EOS, write_corpus, write_packed_corpus
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401

VOCAB, T, MICRO = 1_009, 32, 2


def text_like(count: int, seed: int) -> np.ndarray:
    """Ids of which a model soon learns something, in documents of about 40."""
    generator = np.random.default_rng(seed)
    ids = (20 + np.arange(count) % 40) * np.where(generator.random(count) < 0.2, 11, 1) % VOCAB
    starts = np.cumsum(generator.integers(20, 60, count // 20))
    starts = starts[starts < count - 1]
    ids[starts], ids[starts + 1] = EOS, BOS
    return ids


@pytest.fixture(scope="module")
def trained(sentencepiece_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two processes, and held-out corpora: long, packed, of one sequence, of unknown text."""
    folder = tmp_path_factory.mktemp("trained")
    digest = hashlib.sha256(sentencepiece_model.read_bytes()).hexdigest()
    shared = {"vocab_size": VOCAB, "block_tokens": 256, "tokenizer_sha256": digest}
    write_corpus(folder / "more", text_like(8_001, 1), **shared)
    write_corpus(folder / "long", text_like(1_201, 2), **shared)
    documents = [text_like(length, length)[1:-1] for length in (9, 30, 14, 22, 70, 11, 28, 31)]
    write_packed_corpus(folder / "packed", [d[(d != EOS) & (d != BOS)] for d in documents], T, **shared)
    write_corpus(folder / "tiny", text_like(T + 2, 3), **shared)
    write_corpus(folder / "unknown", text_like(201, 4), text_bytes=0, **shared)
    config = make_run(
        folder,
        model={"vocab_size": VOCAB},
        data={
            "train": {"a": {"path": str(folder / "more")}},
            "valid": {name: {"path": str(folder / name)} for name in ("long", "packed", "tiny")},
            "tokenizer": str(sentencepiece_model),
            "document_mask": True,
        },
        batch={"global_batch_size": 8, "micro_batch_size": MICRO},
        schedule={"total_steps": 16},
        engine={"zero_stage": 3, "deepspeed": EAGER_ZERO3},
        eval={"every_steps": 8},
        log={"tensorboard": True},
    )
    train(config, 2)
    return folder


def evaluated(*arguments: str | Path, nproc: int = 1, out: Path) -> dict:
    """What `pretrain evaluate` writes; asserts that it succeeded and, in this process, printed nothing but its table."""
    options = ["--micro-batch-size", MICRO, "--nproc", nproc, "--json", out]
    done = CliRunner().invoke(evaluate, [str(part) for part in (*arguments, *options)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    found = json.loads(out.read_text())
    if nproc == 1:
        sources = list(found["held_out"]["sources"])
        shown = [line.split()[0] for line in done.stdout.splitlines()[1:]]
        assert shown == ["source", *sources, *(["together"] if len(sources) > 1 else [])]
    return found


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """The command sets those of its process, which here is the one of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(trained: Path) -> dict:
    return evaluated(trained / "run", out=trained / "alone.json")


@pytest.mark.parametrize("nproc", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(trained: Path, alone: dict, nproc: int, tmp_path: Path) -> None:
    sources = alone["held_out"]["sources"]
    assert {name: source["sequences"] for name, source in sources.items()} == {"long": 38, "packed": 7, "tiny": 2}
    assert alone["held_out"]["document_mask"]
    out = tmp_path / "several.json"
    evaluated(trained / "run", nproc=nproc, out=out)
    assert out.read_bytes() == (trained / "alone.json").read_bytes()


def test_the_numbers_are_those_of_torchs_own_loss(trained: Path, alone: dict) -> None:
    model = load_decoder(open_checkpoint(trained / "run"))
    nats = correct = targets = 0.0
    for name in ("long", "packed", "tiny"):
        source = Source(name, SourceConfig(str(trained / name)), T)
        rows = np.zeros((len(source) + len(source.tails), T + 1), dtype=np.int64)
        source.read(np.arange(len(source)), rows)
        lengths = [source.read_tail(tail, rows[len(source) + tail]) for tail in range(len(source.tails))]
        tokens = torch.from_numpy(rows)
        inputs, wanted = tokens[:, :-1], tokens[:, 1:].clone()
        for row, length in enumerate(lengths, len(source)):
            wanted[row, length:] = -100
        if name == "packed":
            pad = source.manifest.pad_id
            wanted[(tokens[:, 1:] == pad) | (tokens[:, :-1] == pad)] = -100
            wanted[:, -1] = -100
        with torch.no_grad():
            logits = model(inputs, documents_BT=mark_documents(inputs, EOS)).double()
        own = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()
        right, count = int((logits.argmax(-1) == wanted).sum()), int((wanted != -100).sum())
        found = alone["held_out"]["sources"][name]
        assert found["loss"] == pytest.approx(own / count, rel=1e-6)
        assert found["accuracy"] == pytest.approx(right / count)
        assert found["targets"] == count == source.manifest.tokens
        nats, correct, targets = nats + own, correct + right, targets + count
    whole = alone["held_out"]
    assert whole["loss"] == pytest.approx(nats / targets, rel=1e-6)
    assert whole["perplexity"] == pytest.approx(math.exp(nats / targets), rel=1e-5)
    assert whole["accuracy"] == pytest.approx(correct / targets)
    assert 0.2 < whole["accuracy"] < 1


def test_training_wrote_down_the_same_numbers(trained: Path, alone: dict) -> None:
    first, *_, last = read_lines(trained / "run" / "evaluations.jsonl")
    assert first["accuracy"] < 0.1 < last["accuracy"]
    for name, source in alone["held_out"]["sources"].items():
        for value in ("loss", "accuracy", "bits_per_byte"):
            assert last[f"{value}/{name}"] == pytest.approx(source[value], rel=1e-6)
    for value in ("loss", "accuracy", "bits_per_byte"):
        assert last[value] == pytest.approx(alone["held_out"][value], rel=1e-6)
    assert f"{last['accuracy']:.1%} of tokens right" in (trained / "run/logs/train.log").read_text()


def test_tensorboard_has_them_too(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trained / "run" / "tensorboard"))
    board.Reload()
    tags = {tag for tag in board.Tags()["scalars"] if tag.startswith("valid/")}
    values = ("loss", "bits_per_byte", "accuracy")
    names = ("long", "packed", "tiny")
    assert tags == {f"valid/{value}" for value in values} | {f"valid/{v}/{n}" for v in values for n in names}
    last = read_lines(trained / "run" / "evaluations.jsonl")[-1]
    assert board.Scalars("valid/accuracy/long")[-1].value == pytest.approx(last["accuracy/long"])


def test_an_export_has_the_number_of_its_run_to_the_last_bit(trained: Path, alone: dict, tmp_path: Path) -> None:
    folder = export_hf(open_checkpoint(trained / "run"), tmp_path / "export").folder
    data = [part for name in ("long", "packed", "tiny") for part in ("--data", f"{name}={trained / name}")]
    found = evaluated(folder, *data, "--document-mask", out=tmp_path / "export.json")
    assert found["held_out"] == alone["held_out"]
    assert (found["step"], found["tokens"]) == (None, None)
    without = evaluated(folder, *data, out=tmp_path / "without.json")
    assert without["held_out"]["loss"] != alone["held_out"]["loss"]


def test_an_earlier_step_other_data_fewer_sequences_and_another_dtype(
    trained: Path, alone: dict, tmp_path: Path
) -> None:
    options = ["--data", f"b={trained / 'unknown'}", "--data", f"a={trained / 'long'}", "--max-sequences", "7"]
    found = evaluated(trained / "run", *options, "--dtype", "bf16", out=tmp_path / "other.json")["held_out"]
    assert list(found["sources"]) == ["a", "b"]
    assert [source["sequences"] for source in found["sources"].values()] == [3, 3]
    assert found["sources"]["b"]["bits_per_byte"] is None
    assert found["bits_per_byte"] == found["sources"]["a"]["bits_per_byte"]
    exact = evaluated(trained / "run", *options, out=tmp_path / "exact.json")["held_out"]
    assert found["loss"] != exact["loss"]
    assert found["loss"] == pytest.approx(exact["loss"], rel=0.02)
    shorter = evaluated(
        trained / "run", "--data", f"a={trained / 'long'}", "--seq-len", "16", out=tmp_path / "shorter.json"
    )
    assert shorter["held_out"]["sequences"] > 2 * 37 - 2


def test_a_checkpoint_that_is_saved_meanwhile_changes_nothing(trained: Path, tmp_path: Path) -> None:
    """All processes open what the command found."""
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    request = EvaluationRequest(str(run))
    opened = open_request(request)
    assert opened.checkpoint is not None
    (run / "checkpoints" / "step-00000099").mkdir()
    pinned = open_request(replace(request, checkpoint=str(opened.checkpoint)))
    assert pinned.weights.step == opened.weights.step == 16
    assert EvaluationRequest.from_json(request.to_json()) == request


def test_ended_from_outside_it_leaves_no_process_behind(trained: Path) -> None:
    program = "from pretrain.cli.cmd_evaluate import evaluate; evaluate()"
    command = [sys.executable, "-c", program, str(trained / "run"), "--nproc", "2"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(descendants(process.pid)) >= 3, [process], "torchrun and its two processes")
    below = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    # Killed, and gone as soon as the kernel and their new parent have come to it.
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline
        time.sleep(0.02)
