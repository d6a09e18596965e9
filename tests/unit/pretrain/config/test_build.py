"""Names, types and ranges of single values."""

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pretrain.config import load_config
from pretrain.config.build import known_keys
from pretrain.errors import ConfigError, PretrainError
from tests.support.configs import load_text, problems_of, write_config

# --- names ------------------------------------------------------------------------------------------------------------


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    text = """
    modle: {n_layers: 3}
    model: {n_layer: 3, d_model: wide, norm: rmsnrom}
    data: {train: {web: {pth: X}}}
    lr: 1
    """
    found = problems_of(tmp_path, text, "batch.micro_batch_size=0", "no_equals_sign")
    assert len(found) == 8
    for expected in (
        "modle is not a known key",
        "model.n_layer is not a known key\n    hint: did you mean model.n_layers?",
        "model.d_model='wide' is not an integer",
        "model.norm='rmsnrom' is not one of rmsnorm, layernorm\n    hint: did you mean rmsnorm?",
        "data.train.web.pth is not a known key\n    hint: did you mean data.train.web.path?",
        "lr is not a known key\n    hint: did you mean optimizer.lr?",
        "batch.micro_batch_size=0 is below 1",
        "argument 'no_equals_sign' is not of the form key=value",
    ):
        assert any(expected in problem for problem in found), expected


def test_conflicts_between_values_are_collected_too(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        "",
        "model.n_heads=7",
        "batch.global_batch_size=10",
        "engine.zero_stage=0",
        "schedule.warmup_steps=2000",
    )
    assert len(found) == 5  # 7 heads divide neither the width nor among 12 key heads


def test_the_error_says_how_many_problems_and_in_which_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, "a: 1\nb: 2")
    assert str(caught.value).startswith(f"2 problems in the configuration ({tmp_path / 'run.yaml'}):\n  - a")
    assert caught.value.exit_code == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(key=st.sampled_from(known_keys()), position=st.integers(0, 30))
def test_a_key_with_one_letter_missing_is_found_again(tmp_path: Path, key: str, position: int) -> None:
    section, _, name = key.replace("NAME", "web").rpartition(".")
    assume(len(name) > 4)
    position %= len(name)
    misspelt = f"{section}.{name[:position] + name[position + 1 :]}"
    (problem,) = problems_of(tmp_path, "", f"{misspelt}=1")
    assert problem.startswith(f"{misspelt} is not a known key")
    assert f"did you mean {section}." in problem


@pytest.mark.parametrize("value", ["3", "text", "[1, 2]"])
def test_a_section_given_a_value_is_refused(tmp_path: Path, value: str) -> None:
    assert "model=" in problems_of(tmp_path, f"model: {value}")[0]
    assert "is not a set of named sections" in problems_of(tmp_path, f"data: {{train: {value}}}")[0]
    assert "data.train.web=" in problems_of(tmp_path, f"data: {{train: {{web: {value}}}}}")[0]


# --- types and ranges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("model.n_layers=true", "model.n_layers=True is not an integer"),
        ("model.n_layers=3.0", "model.n_layers=3.0 is not an integer"),
        ("model.n_layers=null", "model.n_layers=None is not an integer"),
        ("model.n_layers='3'", "model.n_layers='3' is not an integer"),
        ("model.n_layers=[3]", r"model.n_layers=\[3\] is not an integer"),
        ("optimizer.lr=false", "optimizer.lr=False is not a number"),
        ("optimizer.lr=fast", "optimizer.lr='fast' is not a number"),
        ("optimizer.lr=.nan", "optimizer.lr=nan is not a finite number"),
        ("optimizer.lr=.inf", "optimizer.lr=inf is not a finite number"),
        ("engine.compile=1", "engine.compile=1 is not true or false"),
        ("run.dir=2024", "run.dir=2024 is not a string"),
        ("data.tokenizer=3", "data.tokenizer=3 is not a string"),
        ("engine.deepspeed=on", "engine.deepspeed=.* is not a mapping"),
        ("optimizer.lr=0", "optimizer.lr=0.0 is not above 0"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay=-0.1 is below 0"),
        ("optimizer.beta1=1.5", "optimizer.beta1=1.5 is not below 1"),
        ("engine.zero_stage=4", "engine.zero_stage=4 is above 3"),
        ("run.seed=-1", "run.seed=-1 is below 0"),
        ("data.train.web.weight=-1", "data.train.web.weight=-1.0 is below 0"),
        ("data.train.web.max_epochs=0", "data.train.web.max_epochs=0.0 is not above 0"),
        ("data.stages.x.weights.web=-1", "data.stages.x.weights.web=-1.0 is below 0"),
        ("data.stages.x.weights.web=much", "data.stages.x.weights.web='much' is not a number"),
        ("data.stages.x.start_step=0", "data.stages.x.start_step=0 is below 1"),
        ("data.stages=3", "data.stages=3 is not a set of named sections"),
        ("data.store.attempts=0", "data.store.attempts=0 is below 1"),
        ("schedule.kind=cosin", "schedule.kind='cosin' is not one of .*\n    hint: did you mean cosine?"),
    ],
)
def test_a_wrong_value_is_refused_with_the_rule(tmp_path: Path, argument: str, problem: str) -> None:
    (found,) = problems_of(tmp_path, "", argument)
    assert re.match(problem, found), found


@pytest.mark.parametrize(
    ("argument", "value"),
    [("1", 1.0), ("1e-3", 1e-3), ("1.5E-3", 1.5e-3), ("1E3", 1000.0), (".5", 0.5), ("3.0e-4", 3e-4)],
)
def test_ways_to_write_a_number(tmp_path: Path, argument: str, value: float) -> None:
    for lr in (
        load_text(tmp_path, "", f"optimizer.lr={argument}").optimizer.lr,
        load_text(tmp_path, f"optimizer: {{lr: {argument}}}").optimizer.lr,
    ):
        assert lr == value
        assert type(lr) is float


def test_null_is_a_value_where_it_may_be_one(tmp_path: Path) -> None:
    assert load_text(tmp_path, "data: {tokenizer: T}", "data.tokenizer=null").data.tokenizer is None


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert load_text(tmp_path, "", "run.dir=runs/a=b").run.dir == "runs/a=b"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(arguments=st.lists(st.text("model.n_layers=data{}[]$:'\"?*&!%@,| -3\n", max_size=24), max_size=3))
def test_no_argument_ends_in_anything_but_our_own_error(tmp_path: Path, arguments: list[str]) -> None:
    path = write_config(tmp_path / "run.yaml", "")
    with contextlib.suppress(PretrainError):
        load_config(path, arguments)


# --- cluster files ----------------------------------------------------------------------------------------------------


def test_near_names_of_another_root_are_its_own() -> None:
    from launch.slurm.cluster import Cluster
    from pretrain.config.build import build_section

    problems: list[str] = []
    build_section(Cluster, {"lr": 1.0, "setup": ["a", 1]}, "", problems, root=Cluster)
    unknown, listed = problems
    assert unknown.startswith("lr is not a known key") and "optimizer.lr" not in unknown
    assert "is not a list of strings" in listed
