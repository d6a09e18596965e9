"""Order and distribution of the tests, and what all of them share."""

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.prefork import prefork_fixture  # noqa: F401

# Files by the time they take, longest first: an early failure is seen early, and no worker is left alone with a long file at
# the end. From `pytest --durations=0`; a file that is not named comes after these.
LONGEST = Path(__file__).with_name("longest_files.txt").read_text().split()
PLACES = {name: place for place, name in enumerate(LONGEST)}
# Files that share a fixture of the session run in one worker, so that it is made once; the SLURM cluster exists once.
TOGETHER = {
    "tests/slurm/": "slurm",
    "tests/e2e/test_documented_commands.py": "quickstart",
    "tests/e2e/test_evaluate_quickstart.py": "quickstart",
    "tests/e2e/test_fine_tune_guide.py": "quickstart",
    "tests/e2e/test_generate_quickstart.py": "quickstart",
    "tests/e2e/test_quickstart.py": "quickstart",
    "tests/e2e/test_object_store.py": "object store",
    "tests/e2e/test_checkpoint_commands.py": "object store",
}


def group(file: str) -> str:
    """What runs in one worker: a file, or files that share something large."""
    return next((name for start, name in TOGETHER.items() if file.startswith(start)), file)


def place(item: pytest.Item) -> tuple[int, str]:
    file = item.nodeid.split("::")[0]
    together = group(file)
    return min(PLACES.get(name, len(PLACES)) for name in [*PLACES, file] if group(name) == together), together


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name binary parameters by their length: gzip's header holds a time, and all workers must collect equal names."""
    return (
        f"{len(val)} bytes" if isinstance(val, bytes) and not (val.isascii() and val.decode().isprintable()) else None
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {item.nodeid.split("::")[0]: place(item) for item in items}
    items.sort(key=lambda item: places[item.nodeid.split("::")[0]])


class ByGroup(LoadScopeScheduling):
    """A worker takes the next group when it is done with one, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid.split("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    config.option.loadscopereorder = False
    return ByGroup(config, log)
