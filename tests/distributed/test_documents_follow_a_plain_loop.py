"""Attention within documents on two processes, against a loop that gives the model one document at a time."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.config import load_config
from pretrain.config.schema import BatchConfig
from pretrain.data.loader import Position, build_stream
from pretrain.data.source import Source
from pretrain.distributed.world import World
from pretrain.evaluation.held_out import held_out_batches
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights
from pretrain.model.loss import plain_cross_entropy
from pretrain.optim.adamw import build_optimizer
from pretrain.optim.schedule import lr_fraction
from pretrain.training.metrics import read_lines
from pretrain.training.startup.preflight import prepare
from tests.support.processes import train
from tests.support.runs import EAGER_ZERO3, VOCAB, make_run, markov_tokens
from tests.support.shards import EOS, write_corpus

STEPS = 12
SECTIONS = {
    # Learned positions: with rotary ones it would not show where a document's positions begin.
    "model": {"positions": "learned"},
    "schedule": {"total_steps": STEPS, "warmup_steps": 2},
    "eval": {"every_steps": STEPS, "max_sequences": 7},
    "engine": {"deepspeed": EAGER_ZERO3},
}


def write_documents(folder: Path, count: int, seed: int) -> str:
    """Ids that mostly follow from the one before, every twelfth of them an eos."""
    tokens = markov_tokens(count, seed)
    tokens[np.random.default_rng(seed).random(count) < 1 / 12] = EOS
    write_corpus(folder, tokens, vocab_size=VOCAB, block_tokens=1024)
    return str(folder)


def document_losses(model: Decoder, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of a batch whose rows are cut after each eos: the model never sees two documents at once."""
    total = torch.zeros(())
    for row, target in zip(inputs, targets, strict=True):
        lengths = np.diff([0, *(np.flatnonzero(row[:-1] == EOS) + 1), len(row)]).tolist()
        for document, wanted in zip(row.split(lengths), target.split(lengths), strict=True):
            total = total + plain_cross_entropy(model(document[None]), wanted[None])
    return total


Found = dict[int, tuple[float, float]]


def plain_run(config_path: Path) -> tuple[Found, list[float]]:
    """Loss and gradient norm by step, and the held-out losses before the first step and after the last."""
    config = load_config(config_path).config
    data = prepare(config, 1)
    model = Decoder(config.model)
    init_weights(model, config.model, config.run.seed)
    optimizer = build_optimizer(model, config.optimizer)
    size = config.batch.global_batch_size
    whole = BatchConfig(global_batch_size=size, micro_batch_size=size)
    batches = build_stream(data.order(), data.train, whole, World(), Position(0, 0), config.data)
    found, held_out = {}, [held_out_loss(model, data.valid[0])]
    for step, batch in enumerate(islice(batches, STEPS), start=1):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * lr_fraction(step, config.schedule)
        loss = document_losses(model, batch["inputs"], batch["targets"]) / batch["targets"].numel()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        found[step] = (loss.item(), norm.item())
    return found, [*held_out, held_out_loss(model, data.valid[0])]


@torch.no_grad()
def held_out_loss(model: Decoder, source: Source) -> float:
    """Nats a token of the first seven sequences."""
    (batch,) = held_out_batches(source, 7, 7, World())
    return document_losses(model, batch.inputs, batch.targets).item() / batch.targets.numel()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    sources = {
        "train": {"a": {"path": write_documents(folder / "with-documents", 20_001, 3)}},
        "valid": {"b": {"path": write_documents(folder / "held-out", 1_501, 4)}},
    }
    return make_run(folder, data={**sources, "document_mask": True}, **SECTIONS)


@pytest.fixture(scope="module")
def expected(config: Path) -> tuple[Found, list[float]]:
    torch.set_num_threads(1)
    return plain_run(config)


OPTIONS = [
    pytest.param(["engine.zero_stage=0"], id="stage 0"),
    pytest.param(["engine.zero_stage=2"], id="stage 2"),
    pytest.param(["engine.zero_stage=3", "engine.activation_checkpoint_every=1"], id="stage 3, recomputing"),
    pytest.param(["engine.zero_stage=3", "engine.compile=true"], id="stage 3, compiled", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=OPTIONS)
def run(request: pytest.FixtureRequest, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by two processes."""
    folder = tmp_path_factory.mktemp("run")
    train(config, 2, f"run.dir={folder}", *request.param)
    return folder


def test_a_run_within_documents_is_that_of_documents_one_at_a_time(
    run: Path, expected: tuple[Found, list[float]]
) -> None:
    steps, _ = expected
    found = {line["step"]: (line["loss"], line["grad_norm"]) for line in read_lines(run / "metrics.jsonl")}
    assert set(found) == set(steps)
    assert max(abs(found[step][0] - steps[step][0]) for step in steps) <= 1e-5
    assert max(abs(found[step][1] - steps[step][1]) for step in steps) <= 1e-4


def test_held_out_losses_are_within_documents_too(run: Path, expected: tuple[Found, list[float]]) -> None:
    found = [line["loss"] for line in read_lines(run / "evaluations.jsonl")]
    assert found == pytest.approx(expected[1], abs=1e-5)


def test_without_the_mask_the_losses_are_others(
    config: Path, expected: tuple[Found, list[float]], tmp_path: Path
) -> None:
    train(config, 2, f"run.dir={tmp_path}", "data.document_mask=false")
    found = {line["step"]: line["loss"] for line in read_lines(tmp_path / "metrics.jsonl")}
    assert max(abs(found[step] - expected[0][step][0]) for step in found) > 1e-3  # the others are held to 1e-5
