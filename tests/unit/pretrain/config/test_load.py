"""Files, precedence and interpolation."""

from pathlib import Path

import pytest

from pretrain.config import Config, load_config
from pretrain.config.schema import (
    ModelConfig,
    SourceConfig,
)
from pretrain.errors import ConfigError, UserError
from tests.support.configs import load_text, problems_of, write_config

# --- precedence -------------------------------------------------------------------------------------------------------


def test_defaults_then_parents_then_file_then_command_line(tmp_path: Path) -> None:
    write_config(tmp_path / "oldest.yaml", "model: {n_layers: 1, n_heads: 2, n_kv_heads: 2, d_ff: 10}")
    write_config(tmp_path / "parent.yaml", "extends: oldest.yaml\nmodel: {n_heads: 4, n_kv_heads: 4, d_ff: 20}")
    model = load_text(tmp_path, "extends: parent.yaml\nmodel: {n_kv_heads: 1, d_ff: 30}", "model.d_ff=40").model
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_ff) == (1, 4, 1, 40)
    assert model.d_model == ModelConfig().d_model


def test_the_last_of_two_equal_arguments_wins(tmp_path: Path) -> None:
    assert load_text(tmp_path, "", "run.seed=1", "run.seed=2").run.seed == 2


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_config(tmp_path / "base.yaml", "run: {seed: 7}")
    write_config(tmp_path / "deep" / "middle.yaml", "extends: ../base.yaml")
    assert load_text(tmp_path, "extends: deep/middle.yaml").run.seed == 7


def test_sources_of_parent_file_and_command_line_add_up(tmp_path: Path) -> None:
    write_config(tmp_path / "parent.yaml", "data: {train: {web: {path: W, weight: 3}}}")
    text = "extends: parent.yaml\ndata: {train: {code: {path: C}}}"
    train = load_text(tmp_path, text, "data.train.web.weight=0.5", "data.train.books.path=B").data.train
    assert train == {"web": SourceConfig("W", 0.5), "code": SourceConfig("C"), "books": SourceConfig("B")}


def test_a_section_with_nothing_under_it_keeps_the_parents(tmp_path: Path) -> None:
    write_config(tmp_path / "parent.yaml", "model: {n_layers: 3}")
    assert load_text(tmp_path, "extends: parent.yaml\nmodel:\n  # n_layers: 4\n").model.n_layers == 3


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_text(tmp_path, "") == Config()


def test_loading_does_not_share_mutable_defaults(tmp_path: Path) -> None:
    load_text(tmp_path, "").engine.deepspeed["left"] = "over"
    assert load_text(tmp_path, "").engine.deepspeed == {}


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_loop_of_extends_is_named(tmp_path: Path) -> None:
    write_config(tmp_path / "a.yaml", "extends: b.yaml")
    write_config(tmp_path / "b.yaml", "extends: a.yaml")
    with pytest.raises(ConfigError, match=r"extends itself through a\.yaml → b\.yaml"):
        load_config(tmp_path / "a.yaml")


def test_a_missing_file_is_named_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist") as caught:
        load_config(tmp_path / "none.yaml")
    assert "configs/" in str(caught.value)


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base\.yaml does not exist"):
        load_text(tmp_path, "extends: base.yaml")


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


# --- interpolation ----------------------------------------------------------------------------------------------------


def test_interpolation_reads_another_value_after_overrides(tmp_path: Path) -> None:
    config = load_text(
        tmp_path, "model: {max_seq_len: 64}\ndata: {seq_len: '${model.max_seq_len}'}", "model.max_seq_len=32"
    )
    assert config.data.seq_len == 32


def test_interpolation_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_FOR_TEST", "/scratch")
    assert load_text(tmp_path, "run: {dir: '${oc.env:SCRATCH_FOR_TEST}/run'}").run.dir == "/scratch/run"


@pytest.mark.parametrize(
    "value", ["${model.nothing}", "${oc.env:NO_SUCH_VARIABLE_HERE}", "${no_resolver:1}", "${run.dir}"]
)
def test_an_interpolation_that_cannot_be_resolved_is_one_problem(tmp_path: Path, value: str) -> None:
    (problem,) = problems_of(tmp_path, f"run: {{dir: '{value}'}}")
    assert problem.startswith("an interpolation cannot be resolved")


def test_a_broken_interpolation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_text(tmp_path, "run: {dir: '${x'}")


def test_problems_of_all_layers_come_at_once_and_none_that_a_default_makes(tmp_path: Path) -> None:
    """A type, an unknown key and two conflicts in one round; the refused seq_len conflicts with nothing."""
    text = """
    model: {d_model: 100, n_heads: 3, n_kv_heads: 3, max_seq_len: 64}
    data: {seq_len: long}
    schedule: {total_step: 10}
    batch: {global_batch_size: 7, micro_batch_size: 2}
    """
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    named = [problem.split("=")[0].split()[0] for problem in caught.value.problems]
    assert named == ["data.seq_len", "schedule.total_step", "model.d_model", "batch.global_batch_size"]
