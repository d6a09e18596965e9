from itertools import combinations

import pytest

from pretrain.distributed.world import World
from pretrain.errors import UserError

ALL = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ALL, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one_process() -> None:
    assert World.from_environment() == World(0, 1, 0, 1)
    assert World.from_environment().is_main


def test_ranks_are_those_that_torchrun_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ALL, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert World.from_environment() == World(5, 8, 1, 4)
    assert not World.from_environment().is_main


@pytest.mark.parametrize("value", ["two", "-1", "1.5"])
def test_values_that_are_not_numbers_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(UserError, match="WORLD_SIZE"):
        World.from_environment()


def test_tasks_of_srun_that_do_not_know_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match="each would train alone"):
        World.from_environment()
    for name, value in {**ALL, "RANK": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert World.from_environment().rank == 2


@pytest.mark.parametrize("given", [g for n in (1, 2, 3) for g in combinations(ALL, n)], ids=" ".join)
def test_variables_that_belong_together_come_together(given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier job left behind: the process would wait for ranks that nobody starts."""
    for name in given:
        monkeypatch.setenv(name, ALL[name])
    if set(given) <= {"MASTER_ADDR", "MASTER_PORT"}:
        assert World.from_environment() == World()
        return
    with pytest.raises(UserError, match=f"but no {', '.join(name for name in ALL if name not in given)}:") as caught:
        World.from_environment()
    assert f"unset {' '.join(name for name in ALL if name in given)}." in str(caught.value.hint)


def test_a_world_of_one_needs_no_address_and_local_ranks_alone_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert World.from_environment() == World()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert World.from_environment() == World(0, 1, 3, 1)


def test_a_rank_beyond_the_world_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ALL, "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="RANK=2 is not below WORLD_SIZE=2"):
        World.from_environment()
