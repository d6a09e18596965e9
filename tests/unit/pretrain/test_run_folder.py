import json
from pathlib import Path

import pytest

from pretrain.errors import UserError
from pretrain.run_folder import STATUSES, Progress, RunFolder, SkippedRange


def test_progress_counts_steps_samples_and_tokens() -> None:
    assert Progress().advanced(32, 1_000).advanced(96, 2_000) == Progress(step=2, samples=96, tokens=3_000)


@pytest.mark.parametrize(("samples", "after"), [(15, 15), (16, 24), (20, 24), (23, 24), (24, 24)])
def test_a_skipped_range_is_left_from_anywhere_in_it(samples: int, after: int) -> None:
    skipped = [SkippedRange(16, 8, 3, "nan")]
    assert Progress(2, samples).after_skipped(skipped) == Progress(2, after)


def test_progress_survives_json_beside_other_keys() -> None:
    progress = Progress(3, 2**40, 2**50)
    assert Progress.from_json({**json.loads(json.dumps(progress.to_json())), "order": {}}) == progress


def test_progress_without_a_number_is_an_error() -> None:
    with pytest.raises(KeyError):
        Progress.from_json({"step": 1, "samples": 2})


def test_a_run_that_never_started_has_no_status(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "none").status() is None


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_is_one_word_in_a_file(tmp_path: Path, status: str) -> None:
    folder = RunFolder(tmp_path)
    folder.set_status("running")
    folder.set_status(status)
    assert folder.status() == status
    assert (tmp_path / "status").read_text() == status + "\n"
    assert [path.name for path in tmp_path.iterdir()] == ["status"]


def test_an_unknown_status_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        RunFolder(tmp_path).set_status("finished")


def test_a_run_folder_is_made_with_its_parents_and_made_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.make()
    folder.make()
    assert folder.checkpoints.is_dir()
    assert folder.logs.is_dir()


def test_a_file_in_the_way_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="cannot be created") as caught:
        RunFolder(tmp_path / "run").make()
    assert caught.value.hint == "run.dir=DIR"


def test_every_path_lies_in_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    names = ("config", "metrics", "evaluations", "tensorboard", "checkpoints", "logs", "stop_file")
    paths = [getattr(folder, name) for name in names]
    assert {path.parent for path in paths} == {tmp_path}
    assert len(set(paths)) == len(paths)
