"""Encoding that is killed, or done twice at the same time, and still gives the bytes of one quiet run."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from launch.processes import descendants
from tests.support.encoded import files_of, write_jsonl
from tests.support.processes import ENVIRONMENT, pretrain
from tests.support.tokenizers import source_chunks, train_sentencepiece
from tokenizer.corpus.readers import ReadOptions
from tokenizer.encoding.run import encode_corpus

TASK_BYTES = 40_000


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=500)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", list(source_chunks(1_500_000, 1_000)))


@pytest.fixture(scope="module")
def expected(tokenizer: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("quiet") / "out"
    encode_corpus(tokenizer, [corpus], out, workers=1, reading=ReadOptions(task_bytes=TASK_BYTES))
    return files_of(out)


def command(tokenizer: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    options = ["--task-megabytes", str(TASK_BYTES / 1e6), "--workers", "2"]
    paths = ["--tokenizer", str(tokenizer), "--input", str(corpus), "--output", str(out)]
    return ["tokenizer", "encode", *paths, *options, *more]


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain.cli", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(found: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Until something is there, or the process ended."""
    while not found() and process.poll() is None:
        time.sleep(0.005)


def crash_at(call: int, run: Callable[[], object]) -> bool:
    """Run in a copy of this process that ends, as by kill -9, before its n-th change to a folder; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = call

        def counted(real: Callable[..., object], *arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return real(*arguments, **options)

        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, partial(counted, getattr(os, name)))
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_killed_before_any_change_to_the_disk_the_next_run_gives_the_same_bytes(
    tokenizer: Path, tmp_path: Path, step: int
) -> None:
    texts = list(source_chunks(60_000, 1_000))
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [*texts, *texts[:9]])

    def run(name: str) -> None:
        options = {"deduplicate": True, "reading": ReadOptions(task_bytes=32_000)}
        encode_corpus(tokenizer, [corpus], tmp_path / name, workers=1, **options)

    run("quiet")
    expected = files_of(tmp_path / "quiet")
    assert len(expected) == 2 * 3 + 4
    calls, died = random.Random(0).randrange(step), 0
    while crash_at(calls, lambda: run("killed")):
        died += 1
        # Once killed, it is killed again: early, so that what an earlier run left is found half removed.
        crash_at(died % 5, lambda: run("killed"))
        run("killed")
        assert files_of(tmp_path / "killed") == expected, calls
        for path in (tmp_path / "killed").iterdir():
            path.unlink()
        calls += step
    assert died > 90 / step


def kill_parent(process: "subprocess.Popen[str]") -> None:
    process.kill()


def kill_worker(process: "subprocess.Popen[str]") -> None:
    for pid in descendants(process.pid):
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            return


def kill_at(seconds: float, arguments: list[str], kill: Callable[["subprocess.Popen[str]"], None]) -> int:
    """Kill a run when it has done `seconds` of CPU-independent waiting; fails if a process of it lives on."""
    process = start(arguments)
    time.sleep(seconds)
    below = descendants(process.pid)
    kill(process)
    _, error = process.communicate(timeout=120)
    assert "Traceback" not in error
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline, "processes live on after their parent"
        time.sleep(0.05)
    return process.returncode


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_next_run_gives_the_same_bytes(
    tokenizer: Path, corpus: Path, expected: dict[str, bytes], tmp_path: Path, kills: int
) -> None:
    generator = random.Random(kills)
    started = time.monotonic()
    assert pretrain(*command(tokenizer, corpus, tmp_path / "timed")).returncode == 0
    duration = time.monotonic() - started
    for number in range(kills):
        out = tmp_path / str(number)
        for _ in range(generator.randint(1, 2)):
            kill = generator.choice([kill_parent, kill_worker])
            code = kill_at(generator.random() * duration, command(tokenizer, corpus, out), kill)
            assert code in (-signal.SIGKILL, 0, 1, 2)
        done = pretrain(*command(tokenizer, corpus, out))
        assert done.returncode == 0, done.stderr  # also after the last step of a run
        assert files_of(out) == expected


def test_a_worker_that_dies_is_one_error_and_its_task_is_done_by_the_next_run(
    tokenizer: Path, corpus: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(command(tokenizer, corpus, tmp_path / "out"))
    wait_for(lambda: list(tmp_path.glob("out/tasks/task-??????/receipt.json")), process)  # committed, not staged
    kill_worker(process)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "one of the 2 encoding processes died" in error and "hint: run the same command again" in error
    assert "Traceback" not in error
    again = pretrain(*command(tokenizer, corpus, tmp_path / "out"))
    assert again.returncode == 0 and "tasks were finished before" in again.stderr
    assert files_of(tmp_path / "out") == expected


def test_the_same_tasks_at_the_same_time_do_not_harm_each_other(
    tokenizer: Path, corpus: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert pretrain(*command(tokenizer, corpus, out, "--plan")).returncode == 0
    for step in (["--task-id", "0", "--num-tasks", "1"], ["--merge"]):
        twins = [start(command(tokenizer, corpus, out, *step)) for _ in range(3)]
        ended = [(twin.communicate(timeout=300)[1], twin.returncode) for twin in twins]
        assert [code for _, code in ended] == [0, 0, 0], ended
    assert files_of(out) == expected
