"""Finds the tars that `pretrain data index` reads, and checks that its output folder may be cleared.

    FILE     any name                                  FOLDER   every *.tar below it, except hidden files
    GLOB     all matches; `**` is any depth

Sources keep their order; files in a folder or of a glob are sorted by path.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import DataError
from pretrain.shards.format import index_name
from pretrain.shards.manifest import MANIFEST_NAME
from tokenizer.corpus.task_plan import refuse_output_inside

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "unzstd", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz"}
_COMPRESSED_NAMES = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def find_tars(sources: Sequence[str]) -> list[Path]:
    """The tars named by `sources`, in reading order.

    Raises DataError for a source without tars, and for a file that is named twice, not regular, or compressed.
    """
    tars: list[Path] = []
    for source in sources:
        if "://" in source or source.startswith("pipe:"):
            raise DataError(f"{source}: only local files are read here", hint="copy the tars to this machine first")
        tars += _find(source)
    seen: set[Path] = set()
    for path in tars:
        _check_tar(path)
        if path.resolve() in seen:
            raise DataError(
                f"{path}: is named twice, and its tokens would be read twice", hint="name each tar in one source only"
            )
        seen.add(path.resolve())
    return tars


def _find(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return _below(path)
    # An existing file wins over a glob. glob.glob: Path.glob rejects absolute patterns.
    found = [path] if path.exists() else sorted(map(Path, glob.glob(source, recursive=True)))  # noqa: PTH207
    if not found:
        braces = "the shell expands braces: give them without quotes" if "{" in source else None
        raise DataError(f"{source}: no such file", hint=braces or "name .tar files, a folder of them, or a glob")
    return found


def _below(folder: Path) -> list[Path]:
    walk = os.walk(folder, onerror=_refuse_unlisted)
    files = sorted(Path(inside, name) for inside, _, names in walk for name in names if not name.startswith("."))
    for file in files:
        if file.name.endswith(_COMPRESSED_NAMES):
            _refuse_compressed(file, "gunzip, unzstd, bunzip2 or unxz")
    tars = [file for file in files if file.suffix == ".tar"]
    if not tars:
        raise DataError(f"{folder}: no .tar file in it")
    return tars


def _refuse_unlisted(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed: {error.strerror}")


def _check_tar(path: Path) -> None:
    if not path.is_file():  # opening a pipe would block until somebody writes to it
        raise DataError(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            _refuse_compressed(path, command)


def _refuse_compressed(path: Path, command: str) -> None:
    raise DataError(
        f"{path}: compressed tars are not read (compressed members, such as .json.gz, are)",
        hint=f"unpack it first, with {command}",
    )


def check_output(sources: Sequence[str], tars: Sequence[Path], output: Path, *, overwrite: bool) -> None:
    """Raise DataError unless `output` may be cleared: only files of this toolkit may be removed."""
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: the output must be a folder, and this is a file", hint="choose another --output")
    if (output / MANIFEST_NAME).exists() and not overwrite:
        raise DataError(f"{output}: holds a corpus already", hint="choose another --output, or add --overwrite")
    refuse_output_inside([Path(source) for source in sources if Path(source).is_dir()], output)
    for tar in tars:
        if tar.resolve().is_relative_to(output.resolve()):
            raise DataError(f"the source {tar} lies in the output {output}", hint="choose another --output")
    for path in sorted(output.glob("shard-*.tar")):
        # This toolkit writes the index before its shard, so even a killed run leaves no shard without one.
        if not path.with_name(index_name(path.name)).exists():
            raise DataError(
                f"{path} has no index, so this toolkit did not write it, and it would be removed",
                hint="choose another --output",
            )
