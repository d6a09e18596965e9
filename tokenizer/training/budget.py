"""Sources of a tokenizer's training text (`--input`), and the division of the sample's bytes (`--source-bytes`)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pretrain.errors import DataError

DEFAULT_SOURCE = "corpus"
_NAMED = re.compile(r"([A-Za-z][\w.-]*)=(.*)", re.DOTALL)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}
_SIZE = re.compile(rf"(\d+(?:\.\d*)?) ?({'|'.join(_UNITS)})B?")


class SampleSource(NamedTuple):
    """A named part of the corpus with its own budget."""

    name: str
    inputs: tuple[str, ...]


class Budget(NamedTuple):
    """`total` bytes of text from all sources; `given` sets the bytes of single sources."""

    total: int
    given: Mapping[str, int]

    def divide(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Bytes for each source: as given, or a share of the rest in proportion to `sizes` (exact or estimated bytes).

        Raises DataError for an unknown source, or if nothing is left for a source.
        """
        for name in self.given:
            if name not in sizes:
                raise DataError(
                    f"there is no source {name!r}, only {', '.join(sizes)}", hint=f"name it: --input {name}=PATH"
                )
        rest = [name for name in sizes if name not in self.given]
        left = self.total - sum(self.given.values())
        if rest and left <= 0:
            raise DataError(
                f"--source-bytes takes {sum(self.given.values()):,} of {self.total:,} bytes, and leaves nothing for "
                f"{', '.join(rest)}",
                hint="raise --sample-bytes, or give every source its own --source-bytes",
            )
        size = sum(sizes[name] for name in rest) or 1
        return {name: self.given[name] if name in self.given else max(left * sizes[name] // size, 1) for name in sizes}


def parse_sources(arguments: Sequence[str]) -> list[SampleSource]:
    """Parse `--input`: NAME=PATH begins or continues a source, a plain PATH belongs to the name before it.

    Paths before any name belong to the source `corpus`. Raises DataError if NAME=PATH is also the name of a file.
    """
    sources: dict[str, list[str]] = {}
    name = DEFAULT_SOURCE
    for argument in arguments:
        path, named = argument, _NAMED.fullmatch(argument)
        if named is not None:
            if Path(argument).exists():
                raise DataError(
                    f"{argument} is ambiguous: a file or folder, or the source {named[1]} at {named[2]}",
                    hint=f"write ./{argument} for the file",
                )
            name, path = named.groups()
        if not path:
            raise DataError(f"{argument}: no path follows the name", hint=f"write {name}=PATH")
        sources.setdefault(name, []).append(path)
    return [SampleSource(name, tuple(paths)) for name, paths in sources.items()]


def parse_size(text: str) -> int:
    """Parse a number of bytes: `100_000`, `100MB` (10^6), `1.5G` or `64MiB` (2^20). Raises DataError if < 1 or invalid."""
    found = _SIZE.fullmatch(text.replace("_", ""))
    size = round(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size < 1:
        raise DataError(f"{text!r} is not a number of bytes", hint="for example 500000, 100MB, 1.5GB or 64MiB")
    return size


def parse_source_bytes(arguments: Sequence[str]) -> dict[str, int]:
    """Parse `--source-bytes NAME=B`. Raises DataError if a name occurs twice."""
    given: dict[str, int] = {}
    for argument in arguments:
        name, sign, size = argument.partition("=")
        if not sign or name in given:
            raise DataError(
                f"--source-bytes {argument}: {'the source has a budget already' if sign else 'not NAME=BYTES'}",
                hint="for example --source-bytes code=20MB",
            )
        given[name] = parse_size(size)
    return given
