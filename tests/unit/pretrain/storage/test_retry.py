import threading
import time
from collections.abc import Callable

import pytest

from pretrain.errors import DataError
from pretrain.storage import retry as retries
from pretrain.storage.retry import FinalError, is_permanent, retry


class Failing:
    """Raises these errors, one a call, and then gives 7."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


class StatusError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"answered {status}")
        self.status = status


class NoCredentialsError(Exception):
    """As botocore names it."""


def ask(once: Callable[[], int], attempts: int = 4, timeout_s: float = 20.0) -> int:
    return retry(once, what="s3://b/x", attempts=attempts, timeout_s=timeout_s, hint="look")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept, instead of sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_what_works_is_asked_once(waits: list[float]) -> None:
    once = Failing()
    assert ask(once) == 7
    assert (once.calls, waits) == (1, [])


@pytest.mark.parametrize(
    "error", [OSError(5, "input/output"), ConnectionResetError(), TimeoutError(), StatusError(503), DataError("crc32")]
)
def test_what_may_pass_is_asked_again(waits: list[float], error: Exception) -> None:
    once = Failing(error, error, error)
    assert ask(once) == 7
    assert once.calls == 4


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("k"),
        PermissionError("k"),
        StatusError(403),
        StatusError(404),
        NoCredentialsError(),
        ImportError(),
    ],
)
def test_what_would_fail_again_ends_it_at_once(waits: list[float], error: Exception) -> None:
    once = Failing(error)
    with pytest.raises(DataError, match=f"s3://b/x: {type(error).__name__}") as caught:
        ask(once)
    assert (once.calls, waits, caught.value.hint) == (1, [], "look")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_store_is_asked_again(status: int) -> None:
    assert not is_permanent(StatusError(status))


def test_the_last_error_says_what_how_often_and_why(waits: list[float]) -> None:
    once = Failing(*[OSError(5, "no way\nto it")] * 9)
    with pytest.raises(DataError) as caught:
        ask(once, attempts=3)
    assert caught.value.message == "s3://b/x: failed 3 times; the last: OSError: [Errno 5] no way to it"
    assert caught.value.hint == "look"
    assert once.calls == 3


def test_waits_double_to_a_limit_and_differ(waits: list[float]) -> None:
    with pytest.raises(DataError):
        ask(Failing(*[OSError()] * 12), attempts=12)
    bounds = [min(retries.LONGEST_WAIT_S, retries.FIRST_WAIT_S * 2**n) for n in range(11)]
    assert bounds[-1] == retries.LONGEST_WAIT_S
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert len({wait / bound for wait, bound in zip(waits, bounds, strict=True)}) > 1


def test_a_settled_answer_is_raised_as_it_is(waits: list[float]) -> None:
    once = Failing(FinalError(DataError("not a manifest", hint="encode")))
    with pytest.raises(DataError) as caught:
        ask(once)
    assert (caught.value.message, caught.value.hint, once.calls) == ("not a manifest", "encode", 1)


def test_a_try_that_hangs_is_left_and_the_next_one_answers(waits: list[float]) -> None:
    never, calls = threading.Event(), []

    def once() -> int:
        calls.append(1)
        if len(calls) == 1:
            never.wait(60)
        return 7

    assert ask(once, timeout_s=0.1) == 7
    assert len(calls) == 2
    never.set()


def test_a_store_that_always_hangs_ends_in_an_error(waits: list[float]) -> None:
    never, threads = threading.Event(), []

    def once() -> int:
        threads.append(threading.current_thread())
        never.wait(60)
        return 7

    with pytest.raises(DataError, match=r"failed 2 times; the last: TimeoutError: no answer within 0\.05 s"):
        ask(once, attempts=2, timeout_s=0.05)
    assert [thread.is_alive() and thread.daemon for thread in threads] == [True, True]  # no process waits for them
    never.set()


def test_an_interrupt_is_no_failed_try(waits: list[float]) -> None:
    once = Failing(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ask(once)
    assert once.calls == 1
