import pytest

from pretrain.distributed.world import World
from pretrain.errors import UserError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one_process() -> None:
    assert World.from_environment() == World(0, 1, 0, 1)
    assert World.from_environment().is_main


def test_ranks_are_those_that_torchrun_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
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
    monkeypatch.setenv("RANK", "2")
    assert World.from_environment().rank == 2
