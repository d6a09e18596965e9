import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.health.stop_request import SIGNALS, StopRequest


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopRequest().install()
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_nothing_is_wanted_at_first(stop: StopRequest) -> None:
    assert not stop.wanted()
    assert stop.reason is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_noted_by_name_and_the_process_goes_on(stop: StopRequest, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    assert stop.wanted()
    assert stop.reason == number.name


def test_schedulers_may_repeat_their_signal(stop: StopRequest) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert stop.wanted()


def test_a_second_interrupt_ends_the_process_at_once(stop: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.wanted()


def test_a_stop_file_is_a_reason_from_the_moment_it_appears(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.stop_file = tmp_path / "stop"
    assert not stop.wanted()
    stop.stop_file.touch()
    assert stop.wanted()
    assert stop.reason == f"stop file {tmp_path / 'stop'}"
    stop.stop_file.unlink()
    assert stop.wanted()  # once asked, asked


def test_the_first_reason_is_kept_before_the_stop_file(stop: StopRequest, tmp_path: Path) -> None:
    stop.stop_file = tmp_path / "stop"
    stop.stop_file.touch()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.wanted()
    assert stop.reason == "SIGUSR1"


def test_without_install_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    StopRequest()
    assert [signal.getsignal(number) for number in SIGNALS] == before
