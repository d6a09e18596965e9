"""Retries with exponential backoff: every request to a store ends with a result or one error."""

import queue
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

from pretrain.errors import DataError

FIRST_WAIT_S = 0.25  # doubled after each attempt
LONGEST_WAIT_S = 20.0

PERMANENT_STATUS = (400, 401, 403, 404, 405, 410, 416, 501)
# By name: the packages that define them are optional.
PERMANENT_NAMES = (
    "ClientAuthenticationError",  # azure
    "DefaultCredentialsError",  # google
    "InvalidRegionError",  # botocore, like the rest
    "NoCredentialsError",
    "ParamValidationError",
    "PartialCredentialsError",
    "ProfileNotFound",
)

T = TypeVar("T")


class FinalError(Exception):
    """Raise inside a retried function to stop retrying; `error` is raised instead."""

    def __init__(self, error: DataError) -> None:
        super().__init__(error.message)
        self.error = error


def retry(once: Callable[[], T], *, what: str, attempts: int, timeout_s: float, hint: str) -> T:
    """The result of `once`, retried up to `attempts` times with a timeout of `timeout_s` each.

    Any exception is retried, except a permanent one such as a missing file or a refused permission. Raises one DataError that
    says `what` failed, how often, and the last reason (also its cause). An attempt that times out keeps running in its
    thread: `once` must be safe to run twice.
    """
    last: Exception | None = None
    for number in range(attempts):
        if number:
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (number - 1))
            time.sleep(wait * random.uniform(0.5, 1.0))  # jitter: ranks that failed together must not retry together
        try:
            return _within(timeout_s, once)
        except FinalError as answer:
            raise answer.error from None
        except Exception as error:
            if is_permanent(error):
                raise DataError(f"{what}: {describe(error)}", hint=hint) from error
            last = error
    said = "" if last is None else describe(last)
    raise DataError(f"{what}: failed {attempts} times; the last: {said}", hint=hint) from last


def is_permanent(error: BaseException) -> bool:
    """Whether a retry would fail the same way."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | ImportError):
        return True
    status = error.status if hasattr(error, "status") else getattr(error, "code", None)  # aiohttp, gcsfs
    return status in PERMANENT_STATUS or type(error).__name__ in PERMANENT_NAMES


def describe(error: BaseException) -> str:
    """One line: type and text of an error."""
    if isinstance(error, DataError):
        return error.message
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _within(timeout_s: float, once: Callable[[], T]) -> T:
    """Run `once` in its own thread, the only way to abandon a call that hangs. Raises TimeoutError."""
    answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((once(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, name="store-request", daemon=True).start()
    try:
        value, error = answer.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
    if error is not None:
        raise error
    return cast(T, value)
