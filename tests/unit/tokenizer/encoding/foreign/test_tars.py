"""Sources and outputs of `pretrain data index`, and its options."""

import os
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import DataError
from tests.support.foreign_tars import (
    DOCUMENTS,
    EOS,
    PAD,
    VOCAB,
    framed,
    good_tar,
    index,
    stream_of,
)
from tokenizer.encoding.foreign.framing import FramingOptions
from tokenizer.encoding.foreign.tars import find_tars


def test_folders_globs_and_files_are_found_in_order(tmp_path: Path) -> None:
    names = ["b.tar", "a/z.tar", "a/b/c.tar", "a-1.tar", ".hidden.tar", "a/._z.tar"]
    for name in names:
        good_tar(tmp_path / name)
    (tmp_path / "README.md").write_text("no tar")
    (tmp_path / "[1].tar").symlink_to(tmp_path / "b.tar")

    def found(*sources: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in find_tars([str(tmp_path / source) for source in sources])]

    assert found("a") == ["a/b/c.tar", "a/z.tar"]
    assert found("[1].tar", "a") == ["[1].tar", "a/b/c.tar", "a/z.tar"]
    assert found("*[b1].tar") == ["a-1.tar", "b.tar"]
    assert found("a/**/*.tar") == ["a/b/c.tar", "a/z.tar"]
    for twice in ((".",), ("b.tar", "[1].tar"), ("a", "a/z.tar")):
        with pytest.raises(DataError, match=r"is named twice"):
            found(*twice)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.tar", r"missing.tar: no such file\n.*hint"),
        ("*.tar", r"\*.tar: no such file\n.*glob"),
        ("{000..009}.tar", r"no such file\n.*braces"),
        ("s3://bucket/a.tar", r"s3://bucket/a.tar: only local files"),
        ("pipe:cat a.tar", r"only local files"),
        ("empty", r"empty: no .tar file in it"),
        ("fifo", r"fifo: not a regular file"),
        ("packed", r"a.tar.gz: compressed tars are not read .*\n.*hint: unpack it first, with gunzip, "),
        ("gzip", r"gzip: compressed tars are not read .*\n.*hint: unpack it first, with gunzip$"),
        ("zstd", r"hint: unpack it first, with unzstd$"),
        ("bzip2", r"hint: unpack it first, with bunzip2$"),
        ("xz", r"hint: unpack it first, with unxz$"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/a.tar.gz").touch()
    os.mkfifo(tmp_path / "fifo")
    magic = {"gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd", "bzip2": b"BZh9", "xz": b"\xfd7zXZ\0"}
    for name, data in magic.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        index([source], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path) -> None:
    good_tar(tmp_path / "a.tar")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # a path longer than the system takes
        os.mkdir("n" * 250, dir_fd=folder)
        inner = os.open("n" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    with pytest.raises(DataError, match="cannot be listed: File name too long"):
        find_tars([str(tmp_path)])


def test_an_output_that_would_lose_something_is_refused(tmp_path: Path) -> None:
    tar = good_tar(tmp_path / "in/shard-000000.tar")
    with pytest.raises(DataError, match=r"source .*shard-000000.tar lies in the output"):
        index(tar, tmp_path / "in")
    with pytest.raises(DataError, match=r"lies inside the input"):
        index(tmp_path / "in", tmp_path / "in/out")
    with pytest.raises(DataError, match=r"must be a folder"):
        index(tar, tar)
    theirs = good_tar(tmp_path / "out/shard-000007.tar")
    with pytest.raises(DataError, match=r"shard-000007.tar has no index"):
        index(tar, tmp_path / "out", overwrite=True)
    assert theirs.exists()
    theirs.unlink()
    index(tar, tmp_path / "out")
    with pytest.raises(DataError, match=r"holds a corpus already\n.*--overwrite"):
        index(tar, tmp_path / "out")
    assert stream_of(tmp_path / "out") == framed(DOCUMENTS)
    index(good_tar(tmp_path / "b.tar", [[7, 8]]), tmp_path / "out", overwrite=True)
    assert stream_of(tmp_path / "out") == [7, 8, EOS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_id": VOCAB}, "eos_id=1000 is not between 0 and vocab_size-1 = 999"),
        ({"bos_id": -1}, "bos_id=-1 is not between"),
        ({"pad_id": VOCAB}, "pad_id=1000 is not between"),
        ({"pad_id": EOS}, "pad_id=2 is also the eos or bos id"),
        ({"bos_id": PAD, "pad_id": PAD}, "pad_id=3 is also the eos or bos id"),
        ({"member": "sample"}, "member='sample' is not one of document, chunk"),
    ],
)
def test_options_that_contradict_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        index(
            good_tar(tmp_path / "a.tar"),
            tmp_path / "out",
            FramingOptions(**{"vocab_size": VOCAB, "eos_id": EOS, **change}),
        )
