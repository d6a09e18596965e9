"""Rules between values."""

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pretrain.config import Config, check_config, check_world
from pretrain.config.check import find_conflicts
from pretrain.config.schema import (
    BatchConfig,
    DataConfig,
    EngineConfig,
    ModelConfig,
    ScheduleConfig,
    StageConfig,
)
from pretrain.errors import ConfigError
from tests.support.configs import load_text, problems_of

# --- rules between values ---------------------------------------------------------------------------------------------


def test_the_defaults_have_no_conflict() -> None:
    check_config(Config())


@pytest.mark.parametrize(
    ("config", "mentions"),
    [
        (Config(model=ModelConfig(d_model=100, n_heads=12)), "model.d_model=100 is not a multiple of model.n_heads=12"),
        (Config(model=ModelConfig(d_model=12, n_heads=12)), "model.head_dim=1"),
        (
            Config(model=ModelConfig(positions="sinusoidal", d_model=9, n_heads=3, n_kv_heads=3)),
            "model.d_model=9 is odd",
        ),
        (Config(model=ModelConfig(n_kv_heads=5)), "model.n_heads=12 is not a multiple of model.n_kv_heads=5"),
        (Config(model=ModelConfig(n_kv_heads=24)), "model.n_heads=12 is not a multiple of model.n_kv_heads=24"),
        (Config(data=DataConfig(seq_len=4096)), "data.seq_len=4096 is above model.max_seq_len=2048"),
        (Config(batch=BatchConfig(12, 8)), "batch.global_batch_size=12 is not a multiple"),
        (Config(schedule=ScheduleConfig("wsd", 100, 60, 50)), "exceed schedule.total_steps=100"),
        (Config(schedule=ScheduleConfig("cosine", decay_steps=50)), "has no effect with schedule.kind=cosine"),
        (Config(engine=EngineConfig(zero_stage=0)), "engine.zero_stage=0 with engine.precision=bf16"),
        (Config(engine=EngineConfig(precision="fp16", device="cpu")), "engine.precision=fp16 is not supported on CPU"),
    ],
)
def test_each_conflict_is_found(config: Config, mentions: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    (problem,) = caught.value.problems
    assert mentions in problem


def hinted_arguments(problem: str) -> list[str]:
    return re.findall(r"[a-z_]+\.[a-z_]+=[\w.]+", problem.partition("hint:")[2])


@pytest.mark.parametrize(
    "argument",
    ["batch.global_batch_size=12", "data.seq_len=4096", "schedule.warmup_steps=2000", "engine.zero_stage=0"],
)
def test_following_the_hint_solves_the_problem(tmp_path: Path, argument: str) -> None:
    (problem,) = problems_of(tmp_path, "", argument)
    hints = hinted_arguments(problem)
    assert len(hints) == 1
    load_text(tmp_path, "", argument, *hints)


@given(size=st.integers(1, 300), micro=st.integers(1, 20), world=st.integers(1, 40))
def test_a_world_is_accepted_exactly_when_the_batch_divides_and_hints_work(size: int, micro: int, world: int) -> None:
    assume(size % micro == 0)  # what load_config has checked before
    config = Config(batch=BatchConfig(size, micro))
    if size % (micro * world) == 0:
        check_world(config, world)
        return
    with pytest.raises(ConfigError) as caught:
        check_world(config, world)
    hint = str(caught.value).partition("hint: ")[2]
    proposed, _, worlds = hint.partition(", or one of these process counts: ")
    new_size = int(proposed.removeprefix("batch.global_batch_size="))
    check_world(Config(batch=BatchConfig(new_size, micro)), world)
    assert find_conflicts(Config(batch=BatchConfig(new_size, micro))) == []
    numbers = [int(number) for number in re.findall(r"\d+", worlds)]
    assert 1 in numbers
    assert size // micro in numbers
    for number in numbers:
        check_world(config, number)


# --- mixtures and batches that change ---------------------------------------------------------------------------------


TWO = "data: {train: {web: {path: W}, books: {path: B, weight: 0}}}"
STAGE = ("data.stages.late.start_step=10", "data.stages.late.weights={web: 1, books: 3}")


def test_a_stage_may_be_given_on_the_command_line(tmp_path: Path) -> None:
    late = load_text(tmp_path, TWO, *STAGE, "data.stages.late.weights.web=2").data.stages["late"]
    assert late == StageConfig(10, {"web": 2.0, "books": 3.0})


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), r"data\.train\.books\.weight=0, and no stage of data\.stages reads it"),
        ((*STAGE, "data.train.web.weight=0"), r"data\.train: every weight is 0"),
        ((*STAGE, "data.stages.late.weights.book=1"), r"weights\.book is not a source of data\.train\n.*mean books\?"),
        ((*STAGE, "data.stages.late.start_step=1000"), r"start_step=1000 is not below schedule\.total_steps=1000"),
        (
            (*STAGE, "data.stages.x.start_step=10", "data.stages.x.weights.web=1"),
            "x and data.stages.late both have start_",
        ),
        ((*STAGE, "data.stages.x.start_step=11"), r"data\.stages\.x\.weights has no positive weight"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(tmp_path: Path, arguments: tuple[str, ...], problem: str) -> None:
    (found,) = problems_of(tmp_path, TWO, *arguments)
    assert re.search(problem, found), found


RAMP = {"ramp_start_size": 8, "ramp_increment": 8, "ramp_steps": 30}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ramp_steps": 0}, r"also needs batch\.ramp_steps\n"),
        ({"ramp_increment": 0, "ramp_steps": 0}, r"also needs batch\.ramp_increment, batch\.ramp_steps\n"),
        ({"ramp_increment": 20}, r"ramp_increment=20 is not a multiple of batch\.micro_batch_size=8"),
        ({"ramp_increment": 16}, r"ramp_start_size=8 does not reach batch\.global_batch_size=32 in steps of .*=16"),
        ({"ramp_start_size": 32}, r"ramp_start_size=32 does not reach"),
        ({"ramp_steps": 2}, r"ramp_steps=2 is below the number of batch sizes in the ramp\n.*ramp_steps=3"),
    ],
)
def test_a_batch_that_cannot_grow_is_refused(changes: dict[str, int], problem: str) -> None:
    found = find_conflicts(Config(batch=BatchConfig(**{**RAMP, **changes})))
    assert any(re.search(problem, one) for one in found), found
    assert find_conflicts(Config(batch=BatchConfig(**RAMP))) == []


def test_every_size_of_a_growing_batch_must_be_shared_evenly() -> None:
    config = Config(batch=BatchConfig(64, 8, ramp_start_size=16, ramp_increment=16, ramp_steps=30))
    check_world(config, 2)
    with pytest.raises(ConfigError, match=r"batch\.ramp_start_size=16 is not a multiple of .* × 4 processes") as caught:
        check_world(config, 4)
    assert "hint: batch.ramp_start_size=32" in str(caught.value)
