import contextlib
import dataclasses
import math
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pretrain.config import Config, check_config, check_world, load_config, save_config
from pretrain.config.build import build, known_keys, named_section
from pretrain.config.check import find_conflicts
from pretrain.config.load import COMMAND_LINE
from pretrain.config.schema import (
    BatchConfig,
    DataConfig,
    EngineConfig,
    ModelConfig,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
)
from pretrain.config.show import show_config
from pretrain.errors import ConfigError, PretrainError, UserError
from pretrain.plan.counts import count_parameters
from tests.support.repository import ROOT

CONFIGS = ROOT / "configs"
SECTIONS = get_type_hints(Config)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def load(folder: Path, text: str, *overrides: str) -> Config:
    return load_config(write(folder / "run.yaml", text), overrides).config


def problems_of(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return caught.value.problems


# --- precedence -------------------------------------------------------------------------------------------------------


def test_defaults_then_parents_then_file_then_command_line(tmp_path: Path) -> None:
    write(tmp_path / "oldest.yaml", "model: {n_layers: 1, n_heads: 2, n_kv_heads: 2, d_ff: 10}")
    write(tmp_path / "parent.yaml", "extends: oldest.yaml\nmodel: {n_heads: 4, n_kv_heads: 4, d_ff: 20}")
    model = load(tmp_path, "extends: parent.yaml\nmodel: {n_kv_heads: 1, d_ff: 30}", "model.d_ff=40").model
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_ff) == (1, 4, 1, 40)
    assert model.d_model == ModelConfig().d_model


def test_the_last_of_two_equal_arguments_wins(tmp_path: Path) -> None:
    assert load(tmp_path, "", "run.seed=1", "run.seed=2").run.seed == 2


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(tmp_path / "base.yaml", "run: {seed: 7}")
    write(tmp_path / "deep" / "middle.yaml", "extends: ../base.yaml")
    assert load(tmp_path, "extends: deep/middle.yaml").run.seed == 7


def test_sources_of_parent_file_and_command_line_add_up(tmp_path: Path) -> None:
    write(tmp_path / "parent.yaml", "data: {train: {web: {path: W, weight: 3}}}")
    text = "extends: parent.yaml\ndata: {train: {code: {path: C}}}"
    train = load(tmp_path, text, "data.train.web.weight=0.5", "data.train.books.path=B").data.train
    assert train == {"web": SourceConfig("W", 0.5), "code": SourceConfig("C"), "books": SourceConfig("B")}


def test_a_section_with_nothing_under_it_keeps_the_parents(tmp_path: Path) -> None:
    write(tmp_path / "parent.yaml", "model: {n_layers: 3}")
    assert load(tmp_path, "extends: parent.yaml\nmodel:\n  # n_layers: 4\n").model.n_layers == 3


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Config()


def test_loading_does_not_share_mutable_defaults(tmp_path: Path) -> None:
    load(tmp_path, "").engine.deepspeed["left"] = "over"
    assert load(tmp_path, "").engine.deepspeed == {}


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_loop_of_extends_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml")
    write(tmp_path / "b.yaml", "extends: a.yaml")
    with pytest.raises(ConfigError, match=r"extends itself through a\.yaml → b\.yaml"):
        load_config(tmp_path / "a.yaml")


def test_a_missing_file_is_named_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist") as caught:
        load_config(tmp_path / "none.yaml")
    assert "configs/" in str(caught.value)


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base\.yaml does not exist"):
        load(tmp_path, "extends: base.yaml")


def test_extends_must_be_one_path(tmp_path: Path) -> None:
    assert "is not the path of a single file" in problems_of(tmp_path, "extends: [a.yaml, b.yaml]")[0]


def test_a_key_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    assert "duplicate key n_layers" in problems_of(tmp_path, "model: {n_layers: 3, n_layers: 4}")[0]


@pytest.mark.parametrize("text", ["model: [1", "\x00", "? [a]\n: 1", "a: b: c", "\t- x", "42", "3.5", "true"])
def test_what_is_no_yaml_mapping_is_one_clean_error(tmp_path: Path, text: str) -> None:
    assert len(problems_of(tmp_path, text)) == 1


def test_a_list_at_top_level_is_refused(tmp_path: Path) -> None:
    assert "is not a mapping `section: {key: value}`" in problems_of(tmp_path, "- model\n- data")[0]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "run.yaml")


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
        load(tmp_path, "a: 1\nb: 2")
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


# --- mixtures and batches that change ---------------------------------------------------------------------------------

TWO = "data: {train: {web: {path: W}, books: {path: B, weight: 0}}}"
STAGE = ("data.stages.late.start_step=10", "data.stages.late.weights={web: 1, books: 3}")


def test_a_stage_may_be_given_on_the_command_line(tmp_path: Path) -> None:
    late = load(tmp_path, TWO, *STAGE, "data.stages.late.weights.web=2").data.stages["late"]
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
        load(tmp_path, "", f"optimizer.lr={argument}").optimizer.lr,
        load(tmp_path, f"optimizer: {{lr: {argument}}}").optimizer.lr,
    ):
        assert lr == value
        assert type(lr) is float


def test_null_is_a_value_where_it_may_be_one(tmp_path: Path) -> None:
    assert load(tmp_path, "data: {tokenizer: T}", "data.tokenizer=null").data.tokenizer is None


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert load(tmp_path, "", "run.dir=runs/a=b").run.dir == "runs/a=b"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(arguments=st.lists(st.text("model.n_layers=data{}[]$:'\"?*&!%@,| -3\n", max_size=24), max_size=3))
def test_no_argument_ends_in_anything_but_our_own_error(tmp_path: Path, arguments: list[str]) -> None:
    path = write(tmp_path / "run.yaml", "")
    with contextlib.suppress(PretrainError):
        load_config(path, arguments)


# --- interpolation ----------------------------------------------------------------------------------------------------


def test_interpolation_reads_another_value_after_overrides(tmp_path: Path) -> None:
    config = load(tmp_path, "model: {max_seq_len: 64}\ndata: {seq_len: '${model.max_seq_len}'}", "model.max_seq_len=32")
    assert config.data.seq_len == 32


def test_interpolation_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_FOR_TEST", "/scratch")
    assert load(tmp_path, "run: {dir: '${oc.env:SCRATCH_FOR_TEST}/run'}").run.dir == "/scratch/run"


@pytest.mark.parametrize(
    "value", ["${model.nothing}", "${oc.env:NO_SUCH_VARIABLE_HERE}", "${no_resolver:1}", "${run.dir}"]
)
def test_an_interpolation_that_cannot_be_resolved_is_one_problem(tmp_path: Path, value: str) -> None:
    (problem,) = problems_of(tmp_path, f"run: {{dir: '{value}'}}")
    assert problem.startswith("an interpolation cannot be resolved")


def test_a_broken_interpolation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, "run: {dir: '${x'}")


# --- saving -----------------------------------------------------------------------------------------------------------

# Strings that YAML would read as numbers are left out: `run.dir=1e3` is refused when loading, so it never gets here.
words = st.from_regex(r"[A-Za-zÄé漢_/][A-Za-z_/.: #'\"-]{0,12}[A-Za-z]", fullmatch=True).filter(
    lambda word: word.lower() not in ("true", "false", "null", "yes", "no", "on", "off", "nan", "inf")
)

names = words.map(lambda word: re.sub(r"\W", "_", word))


def values_of(kind: Any, rules: Any) -> st.SearchStrategy[Any]:
    """Whatever a single value may be."""
    if rules["choices"]:
        return st.sampled_from(rules["choices"])
    least = rules["minimum"] if rules["minimum"] is not None else 0
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(least, rules["maximum"] or 2**40)
    if kind is float:
        top = rules["maximum"] or rules["below"] or 1e30
        return st.floats(
            least,
            top,
            exclude_min=rules["above"] is not None,
            exclude_max=rules["below"] is not None,
            allow_subnormal=False,
        )
    if kind is str:
        return words
    if (named := named_section(kind)) is not None:
        return st.dictionaries(names, sections(named), max_size=2)
    if get_origin(kind) is dict and get_args(kind)[1] is float:
        return st.dictionaries(names, st.floats(0, 1e30, allow_subnormal=False), max_size=2)
    if get_origin(kind) is dict:
        return st.dictionaries(st.sampled_from(["dump_state", "compile", "timers"]), st.booleans(), max_size=2)
    if get_origin(kind) is tuple:
        return st.lists(words, max_size=3).map(tuple)
    one = next(arg for arg in get_args(kind) if arg is not type(None))
    return st.none() | values_of(one, rules)


def sections(kind: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(
        kind,
        **{
            f.name: sections(hints[f.name])
            if dataclasses.is_dataclass(hints[f.name])
            else values_of(hints[f.name], f.metadata)
            for f in dataclasses.fields(kind)
        },
    )


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=40
)
@given(values=st.fixed_dictionaries({name: sections(kind) for name, kind in SECTIONS.items() if name != "model"}))
def test_what_is_saved_loads_as_the_same_values(tmp_path: Path, values: dict[str, Any]) -> None:
    values["batch"] = BatchConfig(values["batch"].micro_batch_size * 3, values["batch"].micro_batch_size)
    values["schedule"] = ScheduleConfig(final_lr_fraction=values["schedule"].final_lr_fraction)
    values["engine"] = dataclasses.replace(values["engine"], zero_stage=1, device="auto")
    held_out = {name: SourceConfig(source.path) for name, source in values["data"].valid.items()}
    train = {name: dataclasses.replace(s, weight=s.weight or 1.0) for name, s in values["data"].train.items()}
    stages = {}
    for number, name in enumerate(values["data"].stages if train else ()):
        stages[name] = StageConfig(number + 1, dict.fromkeys(train, 0.5))
    values["data"] = dataclasses.replace(values["data"], train=train, valid=held_out, stages=stages)
    if values["data"].tokenizer is None or not values["eval"].every_steps:
        values["eval"] = dataclasses.replace(values["eval"], prompts=())
    config = Config(**values, model=ModelConfig(max_seq_len=values["data"].seq_len))
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml").config == config


def test_a_saved_model_loads_as_the_same_model(tmp_path: Path) -> None:
    model = ModelConfig(
        100, 3, 30, 5, 5, 8, 7, 4096, "rope", 1e6, 0.5, "yarn", 8.0, 512, 2.0, 3.0, 16.0, 2.0,
        "layernorm", 1e-12, True, "post", "full", "qkv", "relu", True, True, "reference", 1e-3,
    )  # fmt: skip
    save_config(Config(model=model), tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml").config.model == model


# --- showing ----------------------------------------------------------------------------------------------------------


def test_show_says_where_each_value_came_from(tmp_path: Path) -> None:
    write(tmp_path / "parent.yaml", "model: {n_layers: 3, d_ff: 512}")
    path = write(tmp_path / "run.yaml", "extends: parent.yaml\nmodel: {d_ff: 256}\ndata: {train: {web: {path: W}}}")
    shown = show_config(load_config(path, ["run.seed=5"]))

    def origin(line: str) -> str:
        (match,) = [row for row in shown.splitlines() if row.strip().startswith(f"{line} ")]
        return match.split("  # ")[1]

    assert origin("n_layers: 3") == str(tmp_path / "parent.yaml")
    assert origin("d_ff: 256") == str(path)
    assert origin("path: W") == str(path)
    assert origin("seed: 5") == COMMAND_LINE
    assert origin("n_heads: 12") == "default"


def test_show_lists_every_key_and_is_itself_a_config(tmp_path: Path) -> None:
    arguments = ["data.train.web.path=W", "optimizer.lr=1e-3", "data.stages.x.weights.web=2"]
    shown = show_config(load_config(write(tmp_path / "run.yaml", ""), arguments))
    assert load(tmp_path, shown) == load(tmp_path, "", *arguments)
    keys = {line.strip().split(":")[0] for line in shown.splitlines()}
    assert {key.rsplit(".", 1)[-1] for key in known_keys()} <= keys


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
    load(tmp_path, "", argument, *hints)


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


# --- what is shipped --------------------------------------------------------------------------------------------------

# Published sizes where a model's usual name is rounded further than 8 %.
PUBLISHED = {"1b": 1.24e9, "2m": 2.4e6, "olmo2-1b": 1.485e9}


RUNS = sorted(set(CONFIGS.rglob("*.yaml")) - set((CONFIGS / "cluster").glob("*.yaml")))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_file_loads(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize("path", sorted((CONFIGS / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_model_file_is_as_large_as_its_name_says(path: Path) -> None:
    number, unit = re.fullmatch(r"(?:\w+-)?([\d.]+)([mb])", path.stem).groups()
    named = PUBLISHED.get(path.stem, float(number) * {"m": 1e6, "b": 1e9}[unit])
    assert math.isclose(count_parameters(load_config(path).config.model), named, rel_tol=0.08)


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_every_knob_has_a_help_text_and_a_default_that_fits_its_range(section: str) -> None:
    for field in dataclasses.fields(SECTIONS[section]):
        if dataclasses.is_dataclass(field.default_factory):
            continue  # a section of its own
        assert field.metadata["help"].endswith("."), field.name
        assert len(field.metadata["help"]) > 10, field.name
    problems: list[str] = []
    built = build({section: dataclasses.asdict(SECTIONS[section]())}, problems)
    assert problems == []
    assert built == Config()


# --- another root: a cluster file is built by the same code ------------------------------------------------------------------


def test_near_names_of_another_root_are_its_own() -> None:
    from launch.slurm.cluster import Cluster
    from pretrain.config.build import build_section

    problems: list[str] = []
    build_section(Cluster, {"lr": 1.0, "setup": ["a", 1]}, "", problems, root=Cluster)
    unknown, listed = problems
    assert unknown.startswith("lr is not a known key") and "optimizer.lr" not in unknown
    assert "is not a list of strings" in listed
