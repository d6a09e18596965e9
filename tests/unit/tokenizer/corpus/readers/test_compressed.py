"""Compressed files: read to their end or named as damaged, in bounded memory whatever they claim."""

import bz2
import gzip
import io
import lzma
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.support.corpora import lines, read, read_in_child, rejections, texts
from tests.support.tars import gzip_bomb, mutate
from tokenizer.corpus.readers import ReadOptions
from tokenizer.corpus.readers.compressed import CODECS, PIECE_BYTES, ZSTD_INPUT_BYTES, read_content
from tokenizer.corpus.readers.tar_members import UnusableError

TEXTS = [f"document {n} " + "é" * (n % 50) for n in range(2_000)]
CONTENT = lines(*TEXTS)
NAMES = {"gz": "gzip", "zst": "zstd", "bz2": "bzip2", "xz": "xz"}


def zstd(data: bytes, **options: int) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True, **options).compress(data)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
each_codec = pytest.mark.parametrize("codec", CODECS)


@each_codec
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSON"])
def test_compressed_lines_are_read(tmp_path: Path, codec: str, name: str) -> None:
    path = tmp_path / f"{name}.{codec}"
    path.write_bytes(COMPRESS[codec](CONTENT))
    found = read(path)
    assert texts(found) == TEXTS
    assert (found[0].place, found[-1].place) == (f"{path}:1", f"{path}:2000")


@each_codec
def test_compressed_texts_are_read(tmp_path: Path, codec: str) -> None:
    (tmp_path / f"a.txt.{codec}").write_bytes(COMPRESS[codec]("one\r\né".encode()))
    assert texts(read(tmp_path)) == ["one\r\né"]
    assert texts(read(tmp_path, separator="\r\n")) == ["one", "é"]


@pytest.mark.parametrize(("codec", "command"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz"), ("zst", "zstd")])
def test_what_the_usual_programs_write_is_read(tmp_path: Path, codec: str, command: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT)
    try:
        subprocess.run([command, "-9", path], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"{command} is not installed")
    path.unlink(missing_ok=True)
    assert texts(read(tmp_path)) == TEXTS
    assert (tmp_path / f"a.jsonl.{codec}").exists()


@each_codec
@pytest.mark.parametrize("padding", [b"", bytes(4), bytes(100_000)])
def test_several_streams_in_a_file_are_one_content(tmp_path: Path, codec: str, padding: bytes) -> None:
    compress = COMPRESS[codec]
    cut = len(CONTENT) // 3 + 5
    path = tmp_path / f"a.jsonl.{codec}"
    path.write_bytes(compress(CONTENT[:cut]) + padding + compress(b"") + compress(CONTENT[cut:]) + padding)
    assert read(path) == read(path)
    assert texts(read(path)) == TEXTS


def test_frames_of_zstd_that_are_to_be_skipped_are(tmp_path: Path) -> None:
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"12345"
    (tmp_path / "a.jsonl.zst").write_bytes(skippable + zstd(CONTENT) + skippable)
    assert texts(read(tmp_path)) == TEXTS


@each_codec
@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.9, 1.0])
def test_a_truncated_file_is_named_and_what_was_read_of_it_counts(tmp_path: Path, codec: str, left: float) -> None:
    whole = COMPRESS[codec](CONTENT)
    path = tmp_path / f"a.jsonl.{codec}"
    path.write_bytes(whole[: min(int(left * len(whole)), len(whole) - 1)])
    found = read([path, _good(tmp_path)])
    *read_before, good = texts(found)
    assert good == "good"
    assert read_before == TEXTS[: len(read_before)]
    assert rejections(found) == [(str(path), f"truncated {NAMES[codec]}")]
    assert f"; {len(read_before)} documents before it were read" in str(found[len(read_before)])


def test_only_documents_are_counted_before_a_damage(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines("one") + b"broken\n" + lines("two"))[:-1])
    found = read(tmp_path)
    assert [reason for _, reason in rejections(found)] == ["broken JSON", "truncated gzip"]
    assert "; 2 documents before it were read" in str(found[-1])


def _good(folder: Path) -> Path:
    (folder / "good").mkdir()
    (folder / "good" / "good.txt").write_text("good")
    return folder / "good"


@each_codec
@pytest.mark.parametrize("junk", [b"x", b"junk that follows", b"\0\0junk", b"\x1f\x8b\x08junkjunkjunkjunk"])
def test_what_follows_the_end_is_not_ignored(tmp_path: Path, codec: str, junk: bytes) -> None:
    path = tmp_path / f"a.jsonl.{codec}"
    path.write_bytes(COMPRESS[codec](CONTENT) + junk)
    found = read(path)
    assert texts(found) == TEXTS
    ((place, reason),) = rejections(found)
    assert place == str(path)
    assert reason in (f"broken {NAMES[codec]}", f"truncated {NAMES[codec]}")


@each_codec
def test_damage_is_never_without_a_word(tmp_path: Path, codec: str) -> None:
    draw = random.Random(codec)
    path = tmp_path / f"a.jsonl.{codec}"
    whole = COMPRESS[codec](CONTENT)
    damaged = 0
    for _ in range(60):
        data = mutate(whole, draw)
        path.write_bytes(data)
        found = read(path)
        if texts(found) != TEXTS:
            assert rejections(found)
            damaged += 1
    assert damaged > 30


@pytest.mark.parametrize("codec", ["gz", "bz2", "xz", "zst"])
def test_a_bomb_takes_little_memory_and_ends_early(tmp_path: Path, codec: str) -> None:
    path = tmp_path / f"a.jsonl.{codec}"
    piece = bytes(1 << 24)
    if codec == "gz":
        path.write_bytes(gzip_bomb())
    elif codec == "zst":
        path.write_bytes(zstd(bytes(1 << 30), level=19))
        assert path.stat().st_size < 40_000
    else:
        path.write_bytes(COMPRESS[codec](piece) * 64)
    found, peak = read_in_child([path])
    assert [reason for _, reason in found] == ["decompression bomb"]
    assert peak < 200 << 20


@each_codec
def test_pieces_are_small_whatever_comes_out_of_a_byte(codec: str) -> None:
    bomb = COMPRESS[codec](bytes(1 << 26))
    options = ReadOptions(max_ratio=1 << 30)
    sizes = [len(piece) for piece in read_content(io.BytesIO(bomb), codec, options)]
    assert sum(sizes) == 1 << 26
    assert max(sizes) <= (32 * 1024 * ZSTD_INPUT_BYTES + PIECE_BYTES if codec == "zst" else PIECE_BYTES)


@each_codec
def test_text_that_repeats_itself_is_no_bomb_below_the_limit_of_a_document(codec: str) -> None:
    bomb = COMPRESS[codec](bytes(1 << 20))
    options = ReadOptions(max_document_bytes=1 << 20)
    assert sum(map(len, read_content(io.BytesIO(bomb), codec, options))) == 1 << 20
    with pytest.raises(UnusableError, match="decompression bomb"):
        list(read_content(io.BytesIO(COMPRESS[codec](bytes((1 << 20) + 1))), codec, options))


@each_codec
def test_a_file_may_not_hold_more_than_its_limit(codec: str) -> None:
    data = COMPRESS[codec](CONTENT)
    sizes = map(len, read_content(io.BytesIO(data), codec, ReadOptions(max_file_bytes=len(CONTENT))))
    assert sum(sizes) == len(CONTENT)
    with pytest.raises(UnusableError, match="max_file_bytes"):
        list(read_content(io.BytesIO(data), codec, ReadOptions(max_file_bytes=len(CONTENT) - 1)))


def test_a_window_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstd_of_window(28))
    huge = lzma.compress(CONTENT, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])
    (tmp_path / "b.jsonl.xz").write_bytes(huge)
    assert [reason for _, reason in rejections(read(tmp_path))] == ["broken zstd", "broken xz"]
    (tmp_path / "a.jsonl.zst").write_bytes(zstd_of_window(27))
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(CONTENT, preset=9 | lzma.PRESET_EXTREME))
    assert len(texts(read(tmp_path))) == 2 * len(TEXTS)


def zstd_of_window(bits: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=bits)
    squeeze = zstandard.ZstdCompressor(
        compression_params=parameters
    ).compressobj()  # without the size, it may not be reduced
    return squeeze.compress(CONTENT) + squeeze.flush()
