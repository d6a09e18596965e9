"""Real text that lies on this machine: nothing is downloaded, and what is missing is left out."""

import gettext
import gzip
import os
import random
import re
import struct
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

_PATHS = sysconfig.get_paths()
_LIBRARIES = (Path(_PATHS["stdlib"]), Path(_PATHS["purelib"]))


def code_texts(total_bytes: int) -> list[str]:
    """Python sources of the standard library and of the installed packages, in a fixed mixture."""
    return _take(_files(_LIBRARIES, (".py",)), Path.read_bytes, total_bytes)


def prose_texts(total_bytes: int) -> list[str]:
    """Manual pages in all installed languages without their commands, and the packages' own documentation."""
    pages = _files((Path("/usr/share/man"),), (".gz",))
    return _take((*pages, *_files(_LIBRARIES, (".md", ".rst", "METADATA"))), _read_prose, total_bytes)


def translated_texts(total_bytes: int) -> list[str]:
    """Messages of installed programs in all their languages, some forty scripts: one text a catalogue."""
    return _take(_files((Path("/usr/share/locale"),), (".mo",)), _read_messages, total_bytes)


@cache
def _files(folders: tuple[Path, ...], endings: tuple[str, ...]) -> tuple[Path, ...]:
    walks = (walk for folder in folders for walk in os.walk(folder))
    return tuple(sorted({Path(folder, name) for folder, _, names in walks for name in names if name.endswith(endings)}))


def _take(files: Sequence[Path], read: Callable[[Path], bytes], total_bytes: int) -> list[str]:
    """Texts of some of `files`, drawn by a seed, until they hold `total_bytes`; nothing twice."""
    texts: dict[str, None] = {}
    size = 0
    for text in _decoded(random.Random(0).sample(files, len(files)), read):
        if size >= total_bytes:
            break
        if text.strip() and text not in texts:
            texts[text] = None
            size += len(text.encode())
    return list(texts)


def _decoded(files: Iterable[Path], read: Callable[[Path], bytes]) -> Iterator[str]:
    for file in files:
        try:
            yield read(file).decode()
        except (OSError, EOFError, UnicodeDecodeError, struct.error):
            continue


def _read_prose(file: Path) -> bytes:
    if file.suffix != ".gz":
        return file.read_bytes()
    lines = gzip.decompress(file.read_bytes()).split(b"\n")
    return re.sub(rb"\\f.|\\&", b"", b"\n".join(line for line in lines if not line.startswith((b".", b"'"))))


def _read_messages(file: Path) -> bytes:
    with file.open("rb") as opened:
        catalogue = gettext.GNUTranslations(opened)
    return "\n".join(map(str, catalogue._catalog.values())).encode()  # type: ignore[attr-defined]
