"""The list of native options against what the installed DeepSpeed really looks up while it reads a dictionary."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.config.check import find_conflicts
from pretrain.config.deepspeed_options import DERIVED_OPTIONS, PASSED_OPTIONS, REFUSED_OPTIONS
from pretrain.config.load import load_saved, save_config
from pretrain.config.schema import Config, EngineConfig

DERIVED = {name for name in DERIVED_OPTIONS if "." not in name}
REFUSED = {name for name in REFUSED_OPTIONS if "." not in name}
LEGACY = {"bfloat16"}  # another spelling of bf16, which would go round `engine.precision`


class RecordingDict(dict):
    """Notes every key that is asked for, present or not."""

    def __init__(self, *args: object, asked: set[str], **values: object) -> None:
        super().__init__(*args, **values)
        self.asked = asked

    def __copy__(self) -> "RecordingDict":
        return RecordingDict(self, asked=self.asked)

    def __getitem__(self, key: str) -> object:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: object = None) -> object:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> "RecordingDict":  # `name in d.keys()`
        return self


@pytest.fixture(scope="module")
def deepspeed_read() -> set[str]:
    """Names that DeepSpeed reads: recorded in DeepSpeedConfig, and found in the source of `initialize`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        import deepspeed
        from deepspeed.runtime.config import DeepSpeedConfig

    asked: set[str] = set()
    DeepSpeedConfig(RecordingDict(train_batch_size=1, asked=asked))
    return asked | set(names_looked_up(deepspeed.initialize, "config"))


def names_looked_up(function: object, dictionary: str) -> Iterator[str]:
    """Constants X of `X in dictionary`, `dictionary[X]` and `dictionary.get(X, …)` in a function."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        match node:
            case ast.Compare(left=ast.Constant(value=str(name)), ops=[ast.In()], comparators=[ast.Name(id=place)]):
                pass
            case ast.Subscript(value=ast.Name(id=place), slice=ast.Constant(value=str(name))):
                pass
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=place), attr="get"), args=[ast.Constant(value=str(name)), *_]
            ):
                pass
            case _:
                continue
        if place == dictionary:
            yield name


def removed_options() -> set[str]:
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS

    return set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)


def test_every_option_that_deepspeed_reads_is_accepted_derived_or_refused(deepspeed_read: set[str]) -> None:
    assert deepspeed_read - removed_options() - LEGACY - PASSED_OPTIONS - REFUSED - DERIVED == set()


def test_no_option_is_accepted_that_deepspeed_would_ignore(deepspeed_read: set[str]) -> None:
    assert (PASSED_OPTIONS | REFUSED | DERIVED) - deepspeed_read == set()


def test_no_option_is_accepted_that_deepspeed_has_removed(deepspeed_read: set[str]) -> None:
    assert removed_options() <= deepspeed_read  # it looks for them, to refuse them
    assert removed_options() & (PASSED_OPTIONS | REFUSED) == set()


def test_a_misspelt_option_is_refused_with_the_nearest_name() -> None:
    problems = find_conflicts(Config(engine=EngineConfig(deepspeed={"wall_clock_brakdown": True})))
    assert len(problems) == 1
    assert "engine.deepspeed.wall_clock_brakdown" in problems[0]
    assert "did you mean wall_clock_breakdown?" in problems[0]


@pytest.mark.parametrize("name", sorted(PASSED_OPTIONS))
def test_each_listed_option_passes_through(name: str) -> None:
    assert find_conflicts(Config(engine=EngineConfig(deepspeed={name: {}}))) == []


@pytest.mark.parametrize("name", sorted(DERIVED_OPTIONS))
def test_a_derived_option_is_refused_with_the_key_that_decides_it(name: str) -> None:
    outer, _, inner = name.partition(".")
    problems = find_conflicts(Config(engine=EngineConfig(deepspeed={outer: {inner: 1} if inner else 1})))
    assert len(problems) == 1
    assert f"derived from {DERIVED_OPTIONS[name]}" in problems[0]


def test_a_name_that_is_no_text_is_refused_and_does_not_crash() -> None:
    assert "engine.deepspeed.1 is not an option" in find_conflicts(Config(engine=EngineConfig(deepspeed={1: 2})))[0]


@pytest.mark.parametrize("name", sorted(REFUSED_OPTIONS))
def test_an_option_that_cannot_work_is_refused_by_name_with_the_reason(name: str) -> None:
    outer, _, inner = name.partition(".")
    on = {"enabled": True}
    problems = find_conflicts(Config(engine=EngineConfig(deepspeed={outer: {inner: on} if inner else on})))
    assert problems == [
        f"engine.deepspeed.{name} cannot work here\n    hint: remove it; {REFUSED_OPTIONS[name]}",
    ]


def test_a_refused_option_that_is_switched_off_passes() -> None:
    assert find_conflicts(Config(engine=EngineConfig(deepspeed={"wandb": {"enabled": False}}))) == []


def test_a_checkpoint_with_an_option_that_is_refused_now_stays_readable(tmp_path: Path) -> None:
    save_config(Config(engine=EngineConfig(deepspeed={"csv_monitor": {"enabled": True}})), tmp_path / "config.yaml")
    assert load_saved(tmp_path / "config.yaml").engine.deepspeed == {"csv_monitor": {"enabled": True}}


def with_offload(stage: int, name: str = "offload_optimizer", **options: object) -> list[str]:
    deepspeed = {"zero_optimization": {name: options}}
    return find_conflicts(Config(engine=EngineConfig(zero_stage=stage, precision="fp32", deepspeed=deepspeed)))


@pytest.mark.parametrize(("stage", "name"), [(1, "offload_optimizer"), (2, "offload_optimizer"), (3, "offload_param")])
def test_offload_to_the_host_is_accepted(stage: int, name: str) -> None:
    assert with_offload(stage, name, device="cpu") == []


@pytest.mark.parametrize(
    ("stage", "name", "options", "message", "hint"),
    [
        (
            3,
            "offload_optimizer",
            {"device": "nvme"},
            "device=nvme: a checkpoint cannot read states",
            "optimizer.device=cpu",
        ),
        (
            3,
            "offload_param",
            {"device": "nvme"},
            "device=nvme: a checkpoint cannot read states",
            "offload_param.device=cpu",
        ),
        (2, "offload_optimizer", {"device": "gpu"}, "device='gpu' is neither none nor cpu", "optimizer.device=cpu"),
        (0, "offload_optimizer", {"device": "cpu"}, "zero_stage=0: DeepSpeed would ignore it", "engine.zero_stage=2"),
        (2, "offload_param", {"device": "cpu"}, "zero_stage=2: DeepSpeed would ignore it", "engine.zero_stage=3"),
        (3, "offload_optimizer", {"device": "cpu", "ratio": 0.5}, "ratio=0.5 cannot work here", "remove it"),
    ],
)
def test_offload_without_effect_or_chance_is_refused(
    stage: int, name: str, options: dict[str, object], message: str, hint: str
) -> None:
    [problem] = with_offload(stage, name, **options)
    assert f"zero_optimization.{name}" in problem and message in problem and hint in problem.split("hint: ")[1]
