"""ZeRO stages 0–3 on two processes against a loop in which nothing of DeepSpeed runs."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config import load_config
from pretrain.config.schema import BatchConfig
from pretrain.data.loader import Position, build_stream
from pretrain.distributed.world import World
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights
from pretrain.model.loss import plain_cross_entropy
from pretrain.optim.adamw import build_optimizer
from pretrain.optim.schedule import lr_fraction
from pretrain.training.metrics import read_lines
from pretrain.training.startup.preflight import prepare
from tests.support.processes import losses, train
from tests.support.runs import EAGER_ZERO3, make_run

STEPS = 30


def plain_run(config_path: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step: one process, torch's own cross-entropy and clipping, the global batch at once."""
    config = load_config(config_path).config
    data = prepare(config, 1)
    model = Decoder(config.model)
    init_weights(model, config.model, config.run.seed)
    optimizer = build_optimizer(model, config.optimizer)
    size = config.batch.global_batch_size
    whole = BatchConfig(global_batch_size=size, micro_batch_size=size)
    stream = build_stream(data.order(), data.train, whole, World(), Position(0, 0), config.data)
    found = {}
    for step, batch in enumerate(islice(stream, STEPS), start=1):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * lr_fraction(step, config.schedule)
        loss = plain_cross_entropy(model(batch["inputs"]), batch["targets"]) / batch["targets"].numel()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        found[step] = (loss.item(), norm.item())
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("stages"), engine={"deepspeed": EAGER_ZERO3})


@pytest.fixture(scope="module")
def expected(config: Path) -> dict[int, tuple[float, float]]:
    torch.set_num_threads(1)
    return plain_run(config)


def test_the_plain_loop_learns(expected: dict[int, tuple[float, float]]) -> None:
    assert expected[STEPS][0] < 0.8 * expected[1][0]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_losses_of_a_stage_are_those_of_the_plain_loop(
    stage: int, config: Path, expected: dict[int, tuple[float, float]], tmp_path: Path
) -> None:
    """The norm too: Adam does not mind the scale of a gradient, so that a wrong one would not show in the loss."""
    train(config, 2, f"engine.zero_stage={stage}", f"run.dir={tmp_path}")
    found = {line["step"]: (line["loss"], line["grad_norm"]) for line in read_lines(tmp_path / "metrics.jsonl")}
    assert set(found) == set(expected)
    assert max(abs(found[step][0] - expected[step][0]) for step in expected) <= 1e-5
    assert max(abs(found[step][1] - expected[step][1]) for step in expected) <= 1e-4


@pytest.mark.parametrize(
    "model",
    [
        {"qk_norm": "head", "norm": "layernorm", "norm_bias": True, "attention_bias": "all", "ffn_bias": True},
        pytest.param({"norm_position": "post", "qk_norm": "full", "rope_fraction": 0.5}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_blocks_follow_the_plain_loop_when_partitioned(model: dict[str, Any], tmp_path: Path) -> None:
    """At stage 3 a parameter has its shape only while its own module runs."""
    config = make_run(tmp_path, model=model, engine={"deepspeed": EAGER_ZERO3})
    torch.set_num_threads(1)
    expected = plain_run(config)
    train(config, 2, "engine.zero_stage=3", f"run.dir={tmp_path / 'run'}")
    found = losses(tmp_path / "run" / "metrics.jsonl")
    assert max(abs(found[step] - expected[step][0]) for step in expected) <= 1e-5


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_two_runs_of_the_same_command_are_bitwise_equal(stage: int, config: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        train(config, 2, f"engine.zero_stage={stage}", f"run.dir={tmp_path / name}", "schedule.total_steps=12")
    assert losses(tmp_path / "first" / "metrics.jsonl") == losses(tmp_path / "second" / "metrics.jsonl")
