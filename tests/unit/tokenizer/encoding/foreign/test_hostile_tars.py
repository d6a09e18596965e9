"""Damaged tars and decompression bombs: the ids that other readers see, or an error, within bounded memory."""

import io
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pretrain.errors import DataError
from tests.support.foreign_tars import (
    EOS,
    VOCAB,
    WRITERS,
    write_tar,
)
from tests.support.processes import ENVIRONMENT
from tests.support.tars import (
    END,
    files_by_tarfile,
    gzip_bomb,
    header,
    ids_by_other_readers,
    member,
    mutate,
    npy,
    pax,
)
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.encoding.foreign.framing import FramingOptions, read_token_members


def documents_in(data: bytes) -> list[list[int]] | None:
    """Ids by member, or None if anything is wrong."""
    found = list(
        read_token_members(
            io.BytesIO(data), "x.tar", FramingOptions(vocab_size=VOCAB, eos_id=EOS, member="chunk"), VOCAB
        )
    )
    if any(isinstance(part, Rejection) for part in found):
        return None
    return [part.tolist() for part in found if isinstance(part, np.ndarray)]


FUZZED = {suffix: encode for suffix, encode in WRITERS.items() if suffix != "tok.npy"}


def tar_of(suffix: str, mtime: float) -> bytes:
    file = io.BytesIO()
    with webdataset.TarWriter(file, mtime=mtime) as writer:  # type: ignore[arg-type]
        for number in range(4):
            writer.write({"__key__": f"{number:04d}", suffix: FUZZED[suffix]([number + 10] * (number * 9 + 3))})
    return file.getvalue()


@pytest.mark.parametrize("mtime", [0, 1.5], ids=["plain", "pax"])
@pytest.mark.parametrize("suffix", FUZZED)
def test_a_damaged_tar_gives_the_ids_that_other_readers_see_or_an_error(suffix: str, mtime: float) -> None:
    draw, plain = random.Random(f"{suffix} {mtime}"), tar_of(suffix, mtime)
    expected = documents_in(plain)
    assert expected == [[number + 10] * (number * 9 + 3) for number in range(4)]
    accepted = 0
    for _ in range(500):
        data = mutate(plain, draw)
        try:
            found = documents_in(data)
        except DataError:
            continue
        if found is None:
            continue
        accepted += 1
        files = [(name, content) for name, content in files_by_tarfile(data) if name.endswith((".npy", ".json", ".gz"))]
        assert found == [ids for ids in (ids_by_other_readers(*file) for file in files) if ids]
        if suffix.endswith(".gz") and not mtime:
            assert found == expected  # headers have a checksum, and gzip has one
    assert accepted < 400


def sparse(path: Path, start: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small on disk, and each of them a gibibyte or more for a reader that believes it."""
    folder = tmp_path_factory.mktemp("bombs")
    bomb = gzip_bomb()
    write_tar(folder / "gzip.tar", {"a.json.gz": bomb, "b.npy.gz": bomb})
    huge = npy([1]).replace(b"(1,)", b"(4294967296,)").replace(b"         \n", b"\n")
    write_tar(folder / "npy.tar", {"a.npy": huge})
    write_tar(
        folder / "json.tar", {"a.json": b"[" * (8 << 20), "b.json": b'{"tokens": [' + b"[]," * (5 << 20) + b"1]}"}
    )
    sparse(folder / "large.tar", header(b"a.npy", 1 << 32), (1 << 32) + 1536)
    sparse(folder / "pax.tar", header(b"a", 2 << 30, b"x"), 3 << 30)
    sparse(folder / "long.tar", header(b"a", 2 << 30, b"L"), 3 << 30)
    (folder / "sparse.tar").write_bytes(
        pax(
            GNU__sparse__major="1",
            GNU__sparse__minor="0",
            GNU__sparse__name="a.npy",
            GNU__sparse__realsize=f"{1 << 40}",
        )
        + member(b"GNUSparseFile.0/a.npy", b"1\n0\n9\n" + npy([1]))
        + END
    )
    return folder


def test_bombs_are_refused_within_bounded_memory(bombs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pretrain.cli", "data", "index", bombs, "--output", tmp_path / "out"]
    options = ["--vocab-size", "1000", "--eos-id", "2", "--max-bad-members", "8"]
    done = subprocess.run(
        [*command, *options],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in (
        "gzip.tar: a.json.gz: too large",
        "gzip.tar: b.npy.gz: too large",
        "json.tar: a.json: broken JSON (maximum recursion depth",
        "json.tar: b.json: no list of integers",
        "large.tar: a.npy: too large (4294967296 bytes",
        "long.tar: broken tar (the extended header",
        "npy.tar: a.npy: broken npy",
        "pax.tar: broken tar (the extended header",
        "sparse.tar: GNUSparseFile.0/a.npy: not a plain file (a sparse file)",
    ):
        assert part in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
