"""A folder that is written beside its place and appears there by one rename, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """A new folder on the output's file system, so that publishing is a rename. Removed unless it was renamed."""
    output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    folder = output.with_name(f".{output.name}.staging-{os.getpid()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Ours to delete: a process with this id has died here before (in a container every first process has the same).
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
