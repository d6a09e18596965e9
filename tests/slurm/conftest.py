"""A real SLURM cluster of three nodes for all tests here, and what nothing has happened to."""

import os
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from tests.support.runs import make_run
from tests.support.slurm_cluster import Cluster, missing
from tests.support.slurm_runs import SlurmRun

TOTAL = 24


# Of the tests that rotate, the suite runs one, and `make test-all` all: which one depends on the day, or on this variable.
SEED = int(os.environ.get("SLURM_TESTS_SEED") or date.today().toordinal())


@pytest.hookimpl(tryfirst=True)  # before `-m` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = ", ".join(missing())
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    for item in ours:
        item.add_marker(pytest.mark.slurm)
        item.add_marker(pytest.mark.timeout(1800))
        if lacking:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {lacking}; hint: .ci/install-slurm"))
    rotating = [item for item in ours if item.get_closest_marker("rotates")]
    for number, item in enumerate(rotating):
        if number != SEED % len(rotating):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    with Cluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """Three idle nodes, whatever the test before has done to them."""
    yield whole_cluster
    whole_cluster.repair()


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that saves every fourth step."""
    schedule = {"total_steps": TOTAL, "warmup_steps": 5}
    return make_run(tmp_path_factory.mktemp("slurm"), schedule=schedule, checkpoint={"every_steps": 4})


@pytest.fixture(scope="session")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of the same run by two processes, of which nobody was killed, stopped or moved."""
    from tests.support.processes import losses, train

    folder = tmp_path_factory.mktemp("undisturbed")
    train(config, 2, f"run.dir={folder}")
    return losses(folder / "metrics.jsonl")


@pytest.fixture
def launch(cluster: Cluster, config: Path, tmp_path: Path) -> Callable[..., SlurmRun]:
    """A function that makes a run of `config` with other values in its cluster file."""

    def make(**site: object) -> SlurmRun:
        return SlurmRun(cluster, config, tmp_path, **site)

    return make
