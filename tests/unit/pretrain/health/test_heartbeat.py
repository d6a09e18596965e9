from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.health.heartbeat import SHOWN, Heartbeat, beat_file, describe, find_suspects, read_beats, write_beat

ATTEMPT = 3


def beat(rank: int, *, beats: int = 10, progress: int = 40, phase: str = "agree", **changes: object) -> Heartbeat:
    base = Heartbeat(rank, f"node{rank}", 100 + rank, ATTEMPT, beats, progress, phase, 7, "2026-01-01 00:00:00", 3.0)
    return replace(base, **changes)  # type: ignore[arg-type]


def two_looks(*beats: Heartbeat | None, silent: tuple[int, ...] = ()) -> tuple[dict, dict]:
    """The second look as given; in the first, the same with fewer beats but for the silent."""
    now = dict(enumerate(beats))
    before = {
        rank: beat if beat is None or rank in silent else replace(beat, beats=beat.beats - 3)
        for rank, beat in now.items()
    }
    return before, now


def named(*beats: Heartbeat | None, silent: tuple[int, ...] = (), attempt: int = ATTEMPT) -> list[int]:
    return [suspect.rank for suspect in find_suspects(*two_looks(*beats, silent=silent), attempt)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = beat(1, place="in f (a.py:1)", collectives=12, in_collective=True)
    write_beat(tmp_path / "heartbeats", written)
    assert read_beats(tmp_path / "heartbeats", 2) == {0: None, 1: written}
    assert [path.name for path in (tmp_path / "heartbeats").iterdir()] == ["rank-00001.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rank": 1, "colour": 2}'])
def test_a_file_that_is_no_heartbeat_is_none(text: str, tmp_path: Path) -> None:
    beat_file(tmp_path, 0).write_text(text)
    assert read_beats(tmp_path, 1) == {0: None}


def test_one_whose_beats_do_not_rise_is_named_and_not_those_that_wait_for_it() -> None:
    assert named(beat(0, progress=41), beat(1, progress=30), beat(2, progress=40), silent=(1,)) == [1]


def test_one_without_a_heartbeat_is_named() -> None:
    assert named(beat(0), None, beat(2)) == [1]
    assert "has no heartbeat" in find_suspects(*two_looks(beat(0), None), ATTEMPT)[0].reason


def test_one_that_appears_between_the_looks_lives() -> None:
    _, now = two_looks(beat(0), beat(1))
    assert find_suspects({0: replace(now[0], beats=1), 1: None}, now, ATTEMPT) == []


def test_what_an_earlier_start_left_behind_is_no_sign_of_life() -> None:
    left = beat(1, attempt=ATTEMPT - 1, ended=True, progress=9000)
    (suspect,) = find_suspects(*two_looks(beat(0), left, silent=(1,)), ATTEMPT)
    assert suspect.rank == 1 and "has not begun" in suspect.reason


def test_one_that_its_watchdog_has_ended_counts_by_where_it_stood() -> None:
    ended = {"ended": True, "beats": 10}
    assert named(beat(0, progress=41), beat(1, progress=40, **ended), silent=(1,)) == [1]
    assert named(beat(0, progress=40), beat(1, progress=41, **ended), silent=(1,)) == [0]
    (suspect,) = find_suspects(*two_looks(beat(0, progress=41), beat(1, **ended), silent=(1,)), ATTEMPT)
    assert "is behind the others" in suspect.reason


def test_before_the_run_is_claimed_nobody_can_tell_who_was_ended_now() -> None:
    left = beat(1, attempt=0, ended=True)
    assert named(beat(0, attempt=0), left, silent=(1,), attempt=0) == [1]


def test_those_with_the_least_progress_are_behind_whatever_their_step() -> None:
    back = {"step": 3}  # after a rollback
    assert named(beat(0, progress=41, **back), beat(1, progress=40), beat(2, progress=40), beat(3, progress=42)) == [
        1,
        2,
    ]


def test_among_equals_the_one_that_began_fewer_collectives_is_behind() -> None:
    assert named(beat(0, collectives=9), beat(1, collectives=8), beat(2, collectives=9)) == [1]
    # One that did not look yet says nothing about the others.
    assert named(beat(0, collectives=9), beat(1, collectives=8), beat(2)) == []


def test_among_equals_the_one_outside_a_collective_is_behind() -> None:
    waiting = {"place": "in torch.distributed.all_reduce", "in_collective": True}
    assert named(beat(0, **waiting), beat(1, place="in sleep"), beat(2, **waiting)) == [1]
    assert named(beat(0, **waiting), beat(1), beat(2, **waiting)) == []


def test_a_suspect_is_described_with_process_host_phase_and_line() -> None:
    before, now = two_looks(beat(0, progress=41), beat(1, phase="data", place="in read (blocks.py:12)"))
    (line,) = describe(find_suspects(before, now, ATTEMPT), now)
    assert line == (
        "at fault: rank 1 (process 101 on node1) is behind the others, in phase 'data' of step 7, in read (blocks.py:12)"
    )


def test_where_nobody_stands_out_the_places_are_counted() -> None:
    before, now = two_looks(beat(0), beat(1), beat(2))
    first, *places = describe(find_suspects(before, now, ATTEMPT), now)
    assert "no process stands out" in first
    assert places == ["3 × in phase 'agree' of step 7"]


def test_of_many_suspects_some_are_described_and_the_rest_listed() -> None:
    before, now = two_looks(beat(0, progress=41), *(beat(rank) for rank in range(1, SHOWN + 3)))
    *lines, last = describe(find_suspects(before, now, ATTEMPT), now)
    assert len(lines) == SHOWN and all(line.startswith("at fault: rank ") for line in lines)
    assert last == f"also at fault: ranks {SHOWN + 1}, {SHOWN + 2}"
