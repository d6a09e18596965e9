"""Which failures are final, what is kept of them, and what a full disk leaves of that."""

import errno
from pathlib import Path

import pytest

from pretrain import failure as module
from pretrain.errors import ConfigError, DataError, PretrainError, TrainingError
from pretrain.failure import describe_failure, read_failure, record_failure
from pretrain.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.make()
    found.begin_attempt()
    found.set_status("running")
    return found


def caused(error: Exception, cause: OSError) -> Exception:
    try:
        try:
            raise cause
        except OSError:
            raise error from None
    except type(error) as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingError("step 3: loss is nan"), "failed"),
        (ConfigError(["a problem"]), "failed"),
        (DataError("corrupt"), "failed"),
        (caused(DataError("cannot be read"), FileNotFoundError(errno.ENOENT, "no such file")), "failed"),
        (caused(DataError("cannot be read"), OSError(errno.EIO, "I/O error")), "crashed"),
        (PretrainError("a failure that is not the user's"), "crashed"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "crashed"),
        (MemoryError(), "crashed"),
        (OSError(errno.ESTALE, "Stale file handle"), "crashed"),
    ],
)
def test_verdicts_and_bad_input_are_final_and_everything_else_is_a_crash(error: Exception, status: str) -> None:
    assert describe_failure(error, rank=0, step=1, attempt=1).status == status


def test_a_node_is_avoided_for_its_own_faults_only() -> None:
    def bad_node(error: Exception) -> str | None:
        return describe_failure(error, rank=0, step=1, attempt=1).bad_node

    assert bad_node(RuntimeError("CUDA error"))
    assert bad_node(OSError(errno.ESTALE, "Stale file handle")) is None
    assert bad_node(TrainingError("loss is nan")) is None


def test_the_first_failure_of_an_attempt_is_kept(folder: RunFolder) -> None:
    first = describe_failure(TrainingError("loss is nan", hint="lower it"), rank=1, step=7, attempt=1)
    assert record_failure(folder, first)
    record_failure(folder, describe_failure(RuntimeError("later"), rank=0, step=7, attempt=1), "Traceback of rank 0\n")
    found = read_failure(folder)
    assert found == first and folder.status() == "failed"
    log = (folder.logs / "train.log").read_text()
    assert "failed: loss is nan (rank 1 on " in log and "  hint: lower it\n" in log and "later" not in log
    assert log.endswith("Traceback of rank 0\n")


def test_an_older_attempt_writes_nothing(folder: RunFolder) -> None:
    folder.begin_attempt()
    assert not record_failure(folder, describe_failure(RuntimeError("x"), rank=0, step=7, attempt=1))
    assert folder.status() == "running" and read_failure(folder) is None


def test_a_failure_of_an_earlier_attempt_is_not_shown(folder: RunFolder) -> None:
    record_failure(folder, describe_failure(RuntimeError("x"), rank=0, step=7, attempt=1))
    folder.begin_attempt()
    assert read_failure(folder) is None


def test_a_start_that_fails_before_it_claims_the_run_leaves_its_reason(folder: RunFolder) -> None:
    record_failure(folder, describe_failure(RuntimeError("x"), rank=0, step=7, attempt=1))
    record_failure(folder, describe_failure(RuntimeError("CUDA out of memory"), rank=0, step=0, attempt=0))
    found = read_failure(folder)
    assert found is not None and "out of memory" in found.reason and folder.status() == "crashed"


def test_a_full_disk_still_takes_the_status(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    def fail(*_: object) -> None:
        raise full

    monkeypatch.setattr(RunFolder, "set_status", fail)
    monkeypatch.setattr(module, "publish_once", fail)
    failure = describe_failure(full, rank=0, step=7, attempt=1)
    record_failure(folder, failure)
    assert folder.status() == "crashed" and read_failure(folder) is None
    assert failure.reason == "metrics.jsonl: No space left on device" and "free some space" in (failure.hint or "")


def test_a_damaged_file_is_no_failure(folder: RunFolder) -> None:
    folder.failure.write_text("{")
    assert read_failure(folder) is None
