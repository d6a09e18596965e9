"""Tars of tokens of other tools become shards with exactly their ids, or an error."""

import gzip
from pathlib import Path

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
from pretrain.shards.manifest_file import read_manifest
from tests.support.foreign_tars import (
    BOS,
    DOCUMENTS,
    EOS,
    PAD,
    VOCAB,
    WRITERS,
    framed,
    good_tar,
    index,
    stream_of,
    write_tar,
)
from tests.support.processes import pretrain
from tests.support.tars import (
    END,
    listing,
    member,
    npy,
)
from tokenizer.encoding.foreign import framing as foreign_documents
from tokenizer.encoding.foreign.framing import FramingOptions, document_lengths, frame
from tokenizer.encoding.foreign.rewrite import UNKNOWN_TOKENIZER


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli, ["data", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


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
    other = index(
        tmp_path / "a.tar", tmp_path / "other", FramingOptions(vocab_size=VOCAB, eos_id=EOS, bos_id=BOS)
    ).manifest
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
    reading = FramingOptions(vocab_size=70_000, eos_id=EOS, bos_id=bos_id, pad_id=pad_id, member=member)
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
    reading = FramingOptions(vocab_size=VOCAB, eos_id=EOS, pad_id=PAD, member="chunk")
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
    reading = FramingOptions(vocab_size=VOCAB, eos_id=EOS, pattern="*.tok.npy")
    assert index(tar, tmp_path / "out", reading).other_members == 1
    assert stream_of(tmp_path / "out") == framed([[7, 8], [9]])


def test_our_own_shards_can_be_read_as_foreign_ones(tmp_path: Path) -> None:
    index(good_tar(tmp_path / "a.tar"), tmp_path / "one", block_tokens=1024, shard_bytes=1 << 20)
    reading = FramingOptions(vocab_size=VOCAB, eos_id=EOS, member="chunk", pattern="*.tok.npy")
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
