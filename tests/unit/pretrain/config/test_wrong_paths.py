"""Names and paths of sources as people type them."""

from pathlib import Path

import pytest

from tests.support.configs import load_text, problems_of


@pytest.mark.parametrize("key", ["run.dir", "run.init_from", "data.tokenizer", "data.train.web.path"])
def test_the_home_folder_is_written_out(key: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "data: {train: {web: {path: web}}}", f"{key}=~/x")
    assert problem.startswith(f"{key}=~/x: ") and problem.endswith(f"hint: {key}={Path.home()}/x")


def test_a_misspelt_source_on_the_command_line_names_the_near_one(tmp_path: Path) -> None:
    text = "data: {train: {news: {path: news}, web: {path: web}}}"
    (problem,) = problems_of(tmp_path, text, "data.train.nwes.weight=2")
    assert problem == "data.train.nwes has no path\n    hint: did you mean data.train.news?"


@pytest.mark.parametrize("name", ["no", "on"])
def test_a_source_named_with_a_word_of_yaml_is_refused(name: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, f"data: {{train: {{{name}: {{path: web}}}}}}")
    assert "data.train has a name that YAML reads as" in problem
    text = f"data: {{train: {{'{name}': {{path: web}}}}}}"
    assert list(load_text(tmp_path, text).data.train) == [name]
