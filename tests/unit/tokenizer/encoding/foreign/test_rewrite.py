"""Tars of tokens that someone else wrote become shards of ours with exactly their ids, or an error."""

import gzip
import io
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pretrain.cli.main import cli
from pretrain.config.schema import SourceConfig
from pretrain.data.source import Source
from pretrain.errors import DataError
from pretrain.shards.manifest import read_manifest
from tests.support.processes import ENVIRONMENT, pretrain
from tests.support.tars import (
    END,
    files_by_tarfile,
    gzip_bomb,
    header,
    ids_by_other_readers,
    listing,
    member,
    mutate,
    npy,
    pax,
)
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tokenizer.corpus.readers.rejections import Rejection
from tokenizer.encoding.foreign import framing as foreign_documents
from tokenizer.encoding.foreign.framing import Reading, document_lengths, frame, read_documents
from tokenizer.encoding.foreign.rewrite import UNKNOWN_TOKENIZER, Indexed, index_foreign
from tokenizer.encoding.foreign.tars import find_tars
from tokenizer.models.sentencepiece import load_sentencepiece_model, tokenizer_sha256

EOS, BOS, PAD, VOCAB = 2, 1, 3, 1_000
READING = Reading(vocab_size=VOCAB, eos_id=EOS)
DOCUMENTS = [[10, 11, 12], [20], list(range(100, 400)), [30, 31, EOS]]


def index(sources: Sequence[Path | str] | Path, output: Path, reading: Reading = READING, **options: Any) -> Indexed:
    names = [str(sources)] if isinstance(sources, Path) else [str(source) for source in sources]
    return index_foreign(names, output, reading, **{"block_tokens": 64, "shard_bytes": 512, **options})


def stream_of(folder: Path) -> list[int]:
    """All ids of a corpus, as NumPy and tarfile see them: the last id of a block is the first of the next."""
    stream: list[int] = []
    for entry in read_manifest(folder).shards:
        for name, data in files_by_tarfile((folder / entry.name).read_bytes()):
            if name.endswith(".tok.npy"):
                block = ids_by_other_readers(name, data)
                assert stream[-1:] in ([], block[:1])
                stream += block[1:] if stream else block
    return stream


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli, ["data", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def framed(documents: Sequence[Sequence[int]]) -> list[int]:
    return [token for ids in documents for token in ([*ids] if ids[-1] == EOS else [*ids, EOS])]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(member(name.encode(), data) for name, data in members.items()) + END)
    return path


def good_tar(path: Path, documents: Sequence[Sequence[int]] = DOCUMENTS) -> Path:
    return write_tar(path, {f"{number}.json": listing([*ids]) for number, ids in enumerate(documents)})


WRITERS: dict[str, Callable[[list[int]], object]] = {
    "npy": lambda ids: np.array(ids, np.uint16),
    "tok.npy": lambda ids: np.array(ids),
    "npy.gz": lambda ids: np.array(ids, np.int32),
    "json": lambda ids: ids,
    "input.json": lambda ids: {"input_ids": ids, "url": "https://example.org", "score": 0.5},
    "json.gz": lambda ids: json.dumps(ids),  # as open_lm writes it
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_webdataset_writes_by_default_is_read_whole(tmp_path: Path, suffix: str) -> None:
    for part in range(2):
        with webdataset.TarWriter(str(tmp_path / f"in/part-{part}.tar") if part else open_for(tmp_path)) as writer:
            for number, ids in enumerate(DOCUMENTS):
                writer.write({"__key__": f"{number:08d}", suffix: WRITERS[suffix](ids), "txt": "some text"})
    done = index(tmp_path / "in", tmp_path / "out")
    assert stream_of(tmp_path / "out") == framed(DOCUMENTS * 2)
    assert (done.members, done.other_members) == (8, 8)
    assert done.manifest.documents == 8
    assert done.manifest.tokens == len(framed(DOCUMENTS * 2)) - 1
    assert len(done.manifest.shards) > 1


def open_for(folder: Path) -> str:
    (folder / "in").mkdir()
    return str(folder / "in/part-0.tar")


def test_what_is_written_is_whole_and_can_be_trained_on(tmp_path: Path) -> None:
    manifest = index(good_tar(tmp_path / "a.tar"), tmp_path / "out").manifest
    assert manifest == read_manifest(tmp_path / "out")
    assert "intact" in run("verify", tmp_path / "out")
    source = Source("web", SourceConfig(str(tmp_path / "out")), 16)
    tokens = np.empty((len(source), 17), np.int64)
    source.read(np.arange(len(source)), tokens)
    stream = framed(DOCUMENTS)
    assert tokens.tolist() == [stream[start : start + 17] for start in range(0, len(source) * 16, 16)]


def test_what_is_not_known_is_recorded_as_not_known(tmp_path: Path) -> None:
    manifest = index(good_tar(tmp_path / "a.tar"), tmp_path / "out").manifest
    assert (manifest.text_bytes, manifest.tokenizer_sha256) == (0, UNKNOWN_TOKENIZER)
    assert (manifest.sentencepiece_version, manifest.shuffle_seed, manifest.layout) == ("unknown", 0, "stream")
    assert (manifest.eos_id, manifest.bos_id) == (EOS, EOS)
    other = index(tmp_path / "a.tar", tmp_path / "other", Reading(vocab_size=VOCAB, eos_id=EOS, bos_id=BOS)).manifest
    assert (other.eos_id, other.bos_id) == (EOS, BOS)


def test_the_same_tars_give_the_same_bytes_in_the_same_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c/a"):
        good_tar(tmp_path / f"in/{name}.tar", [[ord(name[0])] * 60])
    index(tmp_path / "in", tmp_path / "one")
    index([tmp_path / "in/*.tar", tmp_path / "in/c"], tmp_path / "other")
    assert stream_of(tmp_path / "one") == framed([[97] * 60, [98] * 60, [99] * 60])
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one == other


@given(st.lists(st.integers(0, 5)), st.sampled_from([None, BOS]), st.sampled_from([None, PAD]), st.booleans())
def test_framing_adds_what_is_missing_and_changes_nothing_else(
    ids: list[int], bos_id: int | None, pad_id: int | None, chunk: bool
) -> None:
    member = "chunk" if chunk else "document"
    reading = Reading(vocab_size=70_000, eos_id=EOS, bos_id=bos_id, pad_id=pad_id, member=member)
    result = frame(np.array(ids, np.int16), reading)
    core = list(ids)
    while core and core[-1] == pad_id:
        core.pop()
    if core and not chunk:
        core = ([] if bos_id in (None, core[0]) else [bos_id]) + core + ([] if core[-1] == EOS else [EOS])
    assert result.tolist() == core
    assert result.dtype == np.dtype("<u4")


@given(st.lists(st.integers(0, 3)))
def test_documents_end_at_each_eos(ids: list[int]) -> None:
    lengths = document_lengths(np.array(ids, np.uint16), EOS)
    assert np.cumsum(lengths).tolist() == [at + 1 for at, token in enumerate(ids) if token == EOS]


def test_chunks_of_a_stream_get_no_eos_and_lose_their_padding(tmp_path: Path) -> None:
    """open_lm: 2,049 ids a member, cut anywhere, the last one of a file filled up."""
    stream = [*range(10, 900), EOS] * 5
    chunks = [stream[start : start + 2049] for start in range(0, len(stream), 2049)]
    chunks[-1] += [PAD] * (2049 - len(chunks[-1]))
    data = {f"{number:032x}.json.gz": gzip.compress(listing(chunk)) for number, chunk in enumerate(chunks)}
    reading = Reading(vocab_size=VOCAB, eos_id=EOS, pad_id=PAD, member="chunk")
    manifest = index(write_tar(tmp_path / "a.tar", data), tmp_path / "out", reading).manifest
    assert stream_of(tmp_path / "out") == stream
    assert manifest.documents == 5


def test_ids_are_compared_before_any_cast(tmp_path: Path) -> None:
    ids = {"u8": [2**64 - 1], "<i8": [-1], ">i4": [VOCAB], "i1": [-128], "u2": [65535]}
    for dtype, wrong in ids.items():
        tar = write_tar(tmp_path / "a.tar", {"a.npy": npy([*range(VOCAB if dtype != "i1" else 9), *wrong][-9:], dtype)})
        with pytest.raises(
            DataError, match=rf"a.npy: id outside the vocabulary \({wrong[0]} at position 8, not between 0"
        ):
            index(tar, tmp_path / "out")
    assert index(write_tar(tmp_path / "a.tar", {"a.npy": npy([0, VOCAB - 1])}), tmp_path / "out").manifest.tokens == 2


BAD = {
    "0.json": (listing([7, 8]), None),
    "1.json": (b"[1", "broken JSON"),
    "2.npy": (npy([1.5], "f4"), "not integers"),
    "3.npy": (npy([[1]]), "not one-dimensional"),
    "4.json.gz": (b"\x1f\x8b", "broken gzip"),
    "5.json": (listing([VOCAB]), "id outside the vocabulary"),
    "6.json": (b"[]", "empty"),
    "7.json": (b'{"text": "a"}', "no token field"),
    "8.npy": (b"\x80\x04N.", "broken npy"),
    "../9.json": (listing([9]), "unsafe name"),
    "0.json ": (b"", None),
    "a.json": (listing([9, 9]), None),
}


def test_damage_is_counted_named_and_left_out(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {name: data for name, (data, _) in BAD.items()})
    reasons = sorted(reason for _, reason in BAD.values() if reason)
    bad = len(reasons) - 1  # an empty list is only counted
    with pytest.raises(DataError) as error:
        index(tar, tmp_path / "out", max_bad_members=bad - 1)
    for reason in set(reasons) - {"empty"}:
        assert f": {reason} (" in str(error.value)
    assert "--max-bad-members" in str(error.value)
    done = index(tar, tmp_path / "out", max_bad_members=bad)
    assert list(done.manifest.skipped.items()) == [(reason, 1) for reason in reasons]
    assert stream_of(tmp_path / "out") == [7, 8, EOS, 9, 9, EOS]
    assert (done.members, done.other_members) == (2, 1)


def test_by_default_the_first_damage_stops_and_leaves_no_corpus(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/b.tar", {"x.json": b"[1"})
    good_tar(tmp_path / "in/a.tar")
    index(tmp_path / "in/a.tar", tmp_path / "out")
    with pytest.raises(DataError, match=r"more than max_bad_members=0 .*\n  - .*b.tar: x.json: broken JSON"):
        index(tmp_path / "in", tmp_path / "out", overwrite=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_rest_of_a_broken_tar_is_lost_and_the_next_is_read(tmp_path: Path) -> None:
    good_tar(tmp_path / "in/a.tar", [[7]] * 9)
    cut = good_tar(tmp_path / "in/b.tar", [[8]] * 9)
    cut.write_bytes(cut.read_bytes()[: 512 * 5])
    good_tar(tmp_path / "in/c.tar", [[9]] * 9)
    done = index(tmp_path / "in", tmp_path / "out", max_bad_members=1)
    assert done.manifest.skipped == {"broken tar": 1}
    assert stream_of(tmp_path / "out") == framed([[7]] * 9 + [[8]] * 2 + [[9]] * 9)


def test_a_sample_that_comes_twice_is_taken_once(tmp_path: Path) -> None:
    twice = member(b"a.json", listing([7])) + member(b"b.json", listing([8])) + member(b"a.json", listing([9]))
    (tmp_path / "a.tar").write_bytes(twice + END)
    with pytest.raises(DataError, match=r"a.json: repeated sample"):
        index(tmp_path / "a.tar", tmp_path / "out")
    assert index(tmp_path / "a.tar", tmp_path / "out", max_bad_members=1).manifest.skipped == {"repeated sample": 1}
    assert stream_of(tmp_path / "out") == framed([[7], [8]])


def test_a_tar_of_too_many_samples_is_not_read_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_documents, "MAX_SAMPLES", 2)
    tar = good_tar(tmp_path / "a.tar", [[7], [8], [9], [10]])
    assert index(tar, tmp_path / "out", max_bad_members=1).manifest.skipped == {"too many samples": 1}
    assert stream_of(tmp_path / "out") == framed([[7], [8]])


def test_two_members_that_may_hold_the_tokens_are_an_error_until_one_is_named(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"d/a.doc.npy": npy([3]), "d/a.tok.npy": npy([7, 8]), "d/b.tok.npy": npy([9])})
    with pytest.raises(DataError, match=r"both d/a.doc.npy and d/a.tok.npy may hold the tokens.*\n.*--tokens-member"):
        index(tar, tmp_path / "out", max_bad_members=99)
    reading = Reading(vocab_size=VOCAB, eos_id=EOS, pattern="*.tok.npy")
    assert index(tar, tmp_path / "out", reading).other_members == 1
    assert stream_of(tmp_path / "out") == framed([[7, 8], [9]])


def test_our_own_shards_can_be_read_as_foreign_ones(tmp_path: Path) -> None:
    index(good_tar(tmp_path / "a.tar"), tmp_path / "one", block_tokens=1024, shard_bytes=1 << 20)
    reading = Reading(vocab_size=VOCAB, eos_id=EOS, member="chunk", pattern="*.tok.npy")
    index(tmp_path / "one", tmp_path / "two", reading)
    assert stream_of(tmp_path / "two") == stream_of(tmp_path / "one") == framed(DOCUMENTS)


def test_no_tokens_at_all_says_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no member of 1 tars holds tokens: 2 have other names(.*\n)+.*--tokens-member"
    ):
        index(write_tar(tmp_path / "a.tar", {"a.txt": b"", "b.txt": b""}), tmp_path / "out")
    (tmp_path / "b.tar").write_bytes(END)
    with pytest.raises(DataError, match=r"no member of 1 tars holds tokens: 0 have"):
        index(tmp_path / "b.tar", tmp_path / "out")


# Where tokens come from and where they go


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
        ({"pad_id": EOS}, "pad_id=2 marks documents too"),
        ({"bos_id": PAD, "pad_id": PAD}, "pad_id=3 marks documents too"),
        ({"member": "sample"}, "member='sample' is not one of document, chunk"),
    ],
)
def test_options_that_contradict_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        index(good_tar(tmp_path / "a.tar"), tmp_path / "out", Reading(**{"vocab_size": VOCAB, "eos_id": EOS, **change}))


# With a tokenizer

TEXTS = ["def f(x):\n    return x  # ü中\U0001f600\n", "  two  spaces\t", "\u2581 is a character too? \x00\x7f", "1234"]


def test_a_tokenizer_tells_how_much_text_there_is(tmp_path: Path, sentencepiece_model: Path) -> None:
    model = load_sentencepiece_model(sentencepiece_model)
    texts = [text.replace("\u2581", "") for text in TEXTS]
    documents = [[model.bos_id(), *model.encode(text), model.eos_id()] for text in texts]
    assert [model.decode(ids) for ids in documents] == texts
    reading = Reading(vocab_size=model.get_piece_size(), eos_id=model.eos_id(), bos_id=model.bos_id())
    tar = good_tar(tmp_path / "a.tar", documents)
    manifest = index(tar, tmp_path / "out", reading, tokenizer=sentencepiece_model).manifest
    assert manifest.text_bytes == sum(len(text.encode()) for text in texts)
    assert manifest.tokenizer_sha256 == tokenizer_sha256(sentencepiece_model)


def test_ids_beyond_the_tokenizer_are_refused_also_where_the_model_has_rows_for_them(
    tmp_path: Path, sentencepiece_model: Path
) -> None:
    tar = good_tar(tmp_path / "a.tar", [[5, 1_009]])
    reading = Reading(vocab_size=1_024, eos_id=EOS)
    assert index(tar, tmp_path / "one", reading).manifest.vocab_size == 1_024
    with pytest.raises(DataError, match=r"1009 at position 1, not between 0 and 1008"):
        index(tar, tmp_path / "out", reading, tokenizer=sentencepiece_model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 1_008}, r"vocab_size=1008, and .* has 1009 pieces\n.*hint: --vocab-size 1009"),
        ({"eos_id": 0}, r"eos_id=0, and .* has 2\n.*hint: --eos-id 2"),
        ({"bos_id": 0}, r"bos_id=0, and .* has 1\n.*hint: --bos-id 1"),
    ],
)
def test_a_tokenizer_that_contradicts_the_options_is_refused(
    tmp_path: Path, sentencepiece_model: Path, change: dict[str, int], message: str
) -> None:
    reading = Reading(**{"vocab_size": 1_009, "eos_id": EOS, **change})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        index(good_tar(tmp_path / "a.tar"), tmp_path / "out", reading, tokenizer=sentencepiece_model)
    assert not (tmp_path / "out").exists()


# Hostile tars


def documents_in(data: bytes) -> list[list[int]] | None:
    """Ids by member, or None if anything is wrong."""
    found = list(
        read_documents(io.BytesIO(data), "x.tar", Reading(vocab_size=VOCAB, eos_id=EOS, member="chunk"), VOCAB)
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
        "long.tar: broken tar (an extended header",
        "npy.tar: a.npy: broken npy",
        "pax.tar: broken tar (an extended header",
        "sparse.tar: GNUSparseFile.0/a.npy: not a plain file (a sparse file)",
    ):
        assert part in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


# The command


def test_the_command_writes_a_corpus_and_prints_what_is_in_it(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "a.tar",
        {"a.json": b'{"ids": [7, 8, 3]}', "b.json": b'{"ids": [1, 9]}', "c.npy": b"", "d.json": b"[]", "e.json": b"{}"},
    )
    options = ["--output", tmp_path / "out", "--vocab-size", VOCAB, "--eos-id", EOS, "--bos-id", BOS, "--pad-id", PAD]
    output = run(
        "index", tar, *map(str, options), "--field", "ids", "--max-bad-members", "1", "--tokens-member", "*.json"
    )
    assert stream_of(tmp_path / "out") == [BOS, 7, 8, EOS, BOS, 9, EOS]
    rows = dict(line.split("  ", 1) for line in output.splitlines())
    assert {name: value.strip() for name, value in rows.items()} == {
        "members": "2",
        "other members": "1",
        "documents": "2",
        "tokens": "6",
        "text": "size unknown without --tokenizer",
        "left out: empty": "1",
        "left out: no token field": "1",
        "shards": f"1 in {tmp_path / 'out'}",
    }
    changed = ["--field", "ids", "--max-bad-members", "2", "--member", "chunk", "--overwrite"]
    run("index", tar, *map(str, options[:6]), *changed)
    assert stream_of(tmp_path / "out") == [7, 8, PAD, 1, 9]


def test_a_mistake_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a\x1b[2J.json": b"[1"})
    done = pretrain("data", "index", tar, "--output", tmp_path / "out", "--vocab-size", "9", "--eos-id", "2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        "error: more than max_bad_members=0 members cannot be used; left out: 1 broken JSON\n"
    )
    assert "a\\x1b[2J.json: broken JSON" in done.stderr
    assert "\x1b[2J" not in done.stderr
    assert pretrain("data", "index", tar, "--output", tmp_path / "out", "--eos-id", "2").returncode == 2
