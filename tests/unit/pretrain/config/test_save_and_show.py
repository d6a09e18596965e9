"""Saving and displaying a configuration."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.config import Config, load_config, save_config
from pretrain.config.build import known_keys, named_section
from pretrain.config.load import COMMAND_LINE
from pretrain.config.schema import (
    BatchConfig,
    ModelConfig,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
)
from pretrain.config.show import show_config
from tests.support.configs import load_text, write_config

SECTIONS = get_type_hints(Config)

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
        return st.dictionaries(st.sampled_from(["dump_state", "log_level", "timers"]), st.booleans(), max_size=2)
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
    write_config(tmp_path / "parent.yaml", "model: {n_layers: 3, d_ff: 512}")
    path = write_config(
        tmp_path / "run.yaml", "extends: parent.yaml\nmodel: {d_ff: 256}\ndata: {train: {web: {path: W}}}"
    )
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
    shown = show_config(load_config(write_config(tmp_path / "run.yaml", ""), arguments))
    assert load_text(tmp_path, shown) == load_text(tmp_path, "", *arguments)
    keys = {line.strip().split(":")[0] for line in shown.splitlines()}
    assert {key.rsplit(".", 1)[-1] for key in known_keys()} <= keys
