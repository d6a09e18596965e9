import random
import time

import pytest
import torch

from pretrain.health import stragglers
from pretrain.health.stragglers import RankTiming, Stragglers, find_slowest, summarize


def own(data_s: float, forward_s: float, error_s: float = 0.0) -> RankTiming:
    return RankTiming("node", data_s, forward_s, error_s)


def test_the_slowest_is_named_with_what_it_is_slow_at() -> None:
    found = find_slowest([own(0.1, 0.9), own(0.5, 1.0), own(0.1, 0.9), own(0.1, 0.8)])
    assert found is not None and found.notable
    assert (found.rank, found.to_json()) == (1, {"rank": 1, "own_seconds": 1.5, "median_seconds": 1.0})
    assert str(found) == (
        "rank 1 on node is the slowest: 1.500 s per step in data and forward, 50 % above the median "
        "(data 0.500 against 0.100, forward 1.000 against 0.900)"
    )


def test_of_two_the_slower_is_compared_with_the_faster() -> None:
    found = find_slowest([own(0, 1.15), own(0, 1.0)])
    assert found is not None and found.notable and found.rank == 0 and found.median.total_s == 1.0


@pytest.mark.parametrize(
    ("seconds", "error_s", "notable"), [(1.09, 0, False), (1.11, 0, True), (1.11, 0.03, False), (1.11, 0.02, True)]
)
def test_notable_is_a_tenth_more_and_more_than_noise(seconds: float, error_s: float, notable: bool) -> None:
    found = find_slowest([own(0, 1.0, error_s), own(0, 1.0, error_s), own(0, seconds, error_s)])
    assert found is not None and found.rank == 2 and found.notable == notable


def test_a_process_alone_is_compared_with_nobody() -> None:
    assert find_slowest([own(0, 1)]) is None


def test_equal_processes_with_noise_are_rarely_reported() -> None:
    generator = random.Random(5)
    reported = 0
    for _ in range(200):
        times = [summarize([(0.0, generator.gauss(1, 0.4)) for _ in range(30)]) for _ in range(8)]
        reported += find_slowest(times).notable  # type: ignore[union-attr]
    assert reported <= 6


def test_means_count_rare_stalls() -> None:
    steady, stalling = summarize([(0.1, 1.0)] * 50), summarize([(0.1, 1.0)] * 49 + [(20.1, 1.0)])
    assert stalling.data_s == pytest.approx(steady.data_s + 0.4)
    assert stalling.error_s == pytest.approx(0.4)


def gathered(monkeypatch: pytest.MonkeyPatch) -> list[RankTiming]:
    """What this process would send, while another that takes no time answers."""
    sent: list[RankTiming] = []

    def gather(value: RankTiming) -> list[RankTiming]:
        sent.append(value)
        return [value, own(0, 0.001)]

    monkeypatch.setattr(stragglers, "gather_to_all", gather)
    return sent


def run_steps(found: Stragglers, count: int, *, first: int = 1) -> list[int]:
    """Steps of 10 ms for data and twice 20 ms forward; returns those at which something was reported."""
    reported = []
    for step in range(first, first + count):
        with found.data():
            time.sleep(0.01)
        for _ in range(2):
            with found.forward():
                time.sleep(0.02)
        time.sleep(0.03)  # what is not its own
        if found.step(step) is not None:
            reported.append(step)
    return reported


def test_one_small_gather_every_so_many_steps_over_the_steps_between(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = gathered(monkeypatch)
    found = Stragglers(torch.device("cpu"), 5)
    assert run_steps(found, 11) == [5, 10]
    assert len(sent) == 2
    for report in sent:
        assert report.data_s >= 0.01 and report.forward_s >= 0.04
    assert len(found._steps) == 1


def test_the_first_step_does_not_count_and_too_few_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = gathered(monkeypatch)
    assert run_steps(Stragglers(torch.device("cpu"), 3), 3) == []
    assert run_steps(Stragglers(torch.device("cpu"), 4), 4) == [4]
    assert len(sent) == 1


def test_a_step_that_was_taken_back_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = gathered(monkeypatch)
    found = Stragglers(torch.device("cpu"), 4)
    run_steps(found, 1)
    for _ in range(50):  # forwards of a step that is judged a spike
        with found.forward():
            pass
    found._forwards = [(0.0, 100.0)] * 50
    assert run_steps(found, 3, first=2) == [4]
    assert sent[0].forward_s < 100


def test_0_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = gathered(monkeypatch)
    assert run_steps(Stragglers(torch.device("cpu"), 0), 5) == [] and sent == []
