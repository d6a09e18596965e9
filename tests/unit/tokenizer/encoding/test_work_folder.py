import fcntl
import json
import os
from pathlib import Path

import pytest

from pretrain.errors import DataError, PretrainError
from pretrain.shards.table import ShardEntry
from pretrain.storage.files import temporary_name
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.corpus.rejection_log import RejectionLog
from tokenizer.encoding import work_folder
from tokenizer.encoding.receipts import RECEIPT_NAME, Receipt, parse_receipt
from tokenizer.encoding.work_folder import WorkFolder

JOB = {"format": "x", "seed": 0, "where": ("a=1",), "plan": "abc"}
SHARD = ShardEntry("shard-000000.tar", 5, "0" * 64, 1, 4, 2)


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    work = WorkFolder(tmp_path / "out", JOB)
    work.open()
    return work


def receipt_of(work: WorkFolder, task: int = 3, **changes: object) -> Receipt:
    problems = RejectionLog()
    problems.add("file", Rejection("file:1", "broken", "why"))
    values = {"seen": 3, "documents": 2, "text_bytes": 9, "tokens": 4, "shards": (SHARD,), "index_sha256": ("1" * 64,)}
    return Receipt(job=work.digest, task=task, **{**values, "problems": problems, **changes})


def finish(work: WorkFolder, receipt: Receipt) -> None:
    with work.staging(f"task-{receipt.task:06d}") as folder:
        (folder / "shard-000000.tar").write_bytes(b"12345")
        (folder / "shard-000000.idx.npy").write_bytes(b"index")
        work.commit_task(folder, receipt)


def test_a_receipt_comes_back_as_it_was_written(work: WorkFolder) -> None:
    receipt = receipt_of(work)
    again = parse_receipt(receipt.to_json().encode())
    assert again == receipt and again.to_json() == receipt.to_json()
    assert again.problems.counts == {"broken": 1}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shards": 1}', "null", '{"shards": [], "problems": {}}'])
def test_what_is_no_receipt_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_receipt(text.encode())


def test_a_task_is_finished_when_its_folder_has_its_name(work: WorkFolder) -> None:
    assert work.receipt(3) is None
    finish(work, receipt_of(work))
    assert work.receipt(3) == receipt_of(work)
    assert sorted(path.name for path in work.path.iterdir()) == ["job.json", "task-000003"]
    files = sorted(path.name for path in (work.path / "task-000003").iterdir())
    assert files == ["receipt.json", "shard-000000.idx.npy", "shard-000000.tar"]


def test_the_second_to_finish_a_task_leaves_the_first_one_as_it_is(work: WorkFolder) -> None:
    finish(work, receipt_of(work))
    before = (work.path / "task-000003").stat().st_ino
    finish(work, receipt_of(work))
    assert (work.path / "task-000003").stat().st_ino == before
    with pytest.raises(PretrainError, match="task 3 was run twice at the same time, with different results"):
        finish(work, receipt_of(work, tokens=5))
    assert sorted(path.name for path in work.path.iterdir()) == ["job.json", "task-000003"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / RECEIPT_NAME).write_text("{"),
        lambda folder: (folder / RECEIPT_NAME).unlink(),
        lambda folder: (folder / "shard-000000.tar").unlink(),
        lambda folder: (folder / "shard-000000.tar").write_bytes(b"1234"),
        lambda folder: (folder / "shard-000000.idx.npy").unlink(),
        lambda folder: (folder / RECEIPT_NAME).write_text(
            (folder / RECEIPT_NAME).read_text().replace('"task": 3', '"task": 4')
        ),
    ],
)
def test_a_finished_task_that_is_not_whole_is_removed_and_done_again(work: WorkFolder, damage) -> None:
    finish(work, receipt_of(work))
    damage(work.path / "task-000003")
    assert work.receipt(3) is None
    assert [path.name for path in work.path.iterdir()] == ["job.json"]
    finish(work, receipt_of(work))
    assert work.receipt(3) is not None


def test_the_same_job_goes_on_and_another_is_refused_with_what_differs(work: WorkFolder) -> None:
    finish(work, receipt_of(work))
    WorkFolder(work.output, dict(JOB)).open()
    with pytest.raises(DataError) as caught:
        WorkFolder(work.output, {"format": "x", "seed": 1, "where": ("a=1",), "plan": "abc", "new": None}).open()
    message = str(caught.value)
    assert "\n  - seed: 0, now 1\n  - new: not given, now null\n" in message
    assert "plan" not in message and "--overwrite" in message
    assert work.receipt(3) is not None


def test_a_damaged_description_is_refused(work: WorkFolder) -> None:
    (work.path / "job.json").write_text("{")
    with pytest.raises(DataError, match=r"job\.json: corrupt"):
        work.open()


def test_a_folder_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt: is not from an encoding run"):
        WorkFolder(tmp_path, JOB).open()
    WorkFolder(tmp_path, JOB).remove_if_empty()
    assert (tmp_path / "tasks" / "notes.txt").read_text() == "mine"


def test_the_temporary_file_of_a_process_that_starts_at_the_same_time_is_no_reason_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    temporary_name(tmp_path / "tasks" / "job.json").write_text("{")
    WorkFolder(tmp_path, JOB).open()
    assert WorkFolder(tmp_path, JOB).found_job() is not None


def test_what_a_process_works_on_stays_and_what_was_abandoned_goes(work: WorkFolder) -> None:
    abandoned = work.path / f"task-000001.{work_folder._boot()}-dead.tmp"
    elsewhere = work.path / "task-000001.0123abcd-else.tmp"
    for folder in (abandoned, elsewhere):
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "shard-000000.tar").touch()
    with work.staging("task-000002") as mine:
        WorkFolder(work.output, JOB).open()
        assert mine.is_dir() and (mine / "lock").exists()
        assert elsewhere.is_dir()  # its lock tells nothing here
        assert not abandoned.exists()
    assert not mine.exists()


def test_a_folder_whose_lock_was_taken_is_left_for_another(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real, taken = fcntl.flock, []

    def removed_before(descriptor: int, flags: int) -> None:
        if not taken:
            taken.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            taken[0].unlink()
        real(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with work.staging("task-000000") as folder:
        assert folder != taken[0].parent
        assert (folder / "lock").exists()


def test_removing_keeps_the_description_to_the_end(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(work, receipt_of(work))
    removed = []
    real = os.unlink
    monkeypatch.setattr(os, "unlink", lambda path, **o: (removed.append(Path(path).name), real(path, **o)))
    work.start_merging()
    work.remove()
    assert removed[-1] == "job.json" and "receipt.json" in removed and "merging" in removed
    assert not work.path.exists()
    work.remove()  # once more


def test_files_are_written_whole(work: WorkFolder) -> None:
    work.write("plan.jsonl", b"{}\n")
    assert (work.path / "plan.jsonl").read_bytes() == b"{}\n"
    assert json.loads((work.path / "job.json").read_text()) == {**JOB, "where": ["a=1"]}
    assert (work.path / "job.json").stat().st_mode & 0o777 == 0o666 & ~work_folder._umask()
