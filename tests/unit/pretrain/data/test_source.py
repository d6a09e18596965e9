from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.config.schema import SourceConfig
from pretrain.data.source import Source, open_sources
from pretrain.errors import DataError
from pretrain.shards.format import OFFSET, index_name, read_index
from pretrain.shards.manifest_file import read_manifest, write_manifest
from pretrain.shards.table import ShardTable, shard_name
from pretrain.storage.store import LocalStore
from tests.support.shards import write_corpus
from tests.support.stores import memory_address_fixture as memory_address_fixture
from tests.support.stores import no_waits_fixture as no_waits_fixture
from tests.support.stores import upload

T = 8


def open_source(folder: Path, seq_len: int = T, name: str = "web") -> Source:
    return Source(name, SourceConfig(str(folder)), seq_len)


def read(source: Source, sequence: int) -> list[int]:
    row = np.empty((1, source.seq_len + 1), np.int64)
    source.read(np.array([sequence]), row)
    return row[0].tolist()


@pytest.mark.parametrize("tokens", [9, 10, 64, 65, 66, 72, 73, 193, 194, 1_000])
@pytest.mark.parametrize("seq_len", [1, 8, 64])
def test_sequences_follow_each_other_through_blocks_and_shards(tmp_path: Path, tokens: int, seq_len: int) -> None:
    stream = write_corpus(tmp_path, tokens)
    if tokens - 1 < seq_len:
        with pytest.raises(DataError):
            open_source(tmp_path, seq_len)
        return
    source = open_source(tmp_path, seq_len)
    for sequence in range(len(source)):
        start = sequence * seq_len
        assert read(source, sequence) == stream[start : start + seq_len + 1].tolist()
    assert len(source) == (tokens - 1) // seq_len
    assert source.dropped_tokens == (tokens - 1) % seq_len


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(65, 3_000), st.integers(1, 5), st.data())
def test_any_sequence_of_any_layout_is_where_the_stream_has_it(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, blocks_per_shard: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    stream = write_corpus(folder, tokens, blocks_per_shard=blocks_per_shard)
    source = open_source(folder, data.draw(st.sampled_from([1, 2, 4, 16, 32, 64])))
    sequence = data.draw(st.integers(0, len(source) - 1))
    start = sequence * source.seq_len
    assert read(source, sequence) == stream[start : start + source.seq_len + 1].tolist()


def test_ids_of_a_large_vocabulary_are_read_whole(tmp_path: Path) -> None:
    stream = write_corpus(tmp_path, [69_999, 0, 65_536, 65_535, *range(300, 320)], vocab_size=70_000)
    assert read(open_source(tmp_path), 0) == stream[:9].tolist()


def test_a_sequence_length_that_does_not_divide_the_block_is_refused_with_one_that_does(tmp_path: Path) -> None:
    write_corpus(tmp_path, 2_000, block_tokens=512)
    with pytest.raises(
        DataError, match=r"data\.seq_len=200 does not divide the blocks of 512 tokens of source web"
    ) as caught:
        open_source(tmp_path, 200)
    assert caught.value.hint == "data.seq_len=256"
    open_source(tmp_path, 256)


def test_the_hint_works_for_blocks_that_no_power_of_two_divides(tmp_path: Path) -> None:
    write_corpus(tmp_path, 2_000, block_tokens=75)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path, 8)
    open_source(tmp_path, int(str(caught.value.hint).partition("=")[2]))


def test_a_corpus_shorter_than_one_sequence_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, 64)
    with pytest.raises(DataError, match=r"holds 63 tokens, fewer than one sequence of data\.seq_len=64") as caught:
        open_source(tmp_path, 64)
    assert "smaller data.seq_len" in str(caught.value.hint)


def test_an_id_outside_the_vocabulary_is_never_passed_on(tmp_path: Path) -> None:
    write_corpus(tmp_path, 500)
    manifest = read_manifest(tmp_path)
    offset = int(read_index(LocalStore(tmp_path), manifest.shards[0])[1, OFFSET])
    with (tmp_path / manifest.shards[0].name).open("r+b") as file:
        file.seek(offset + 2 * 11)
        file.write(np.array([1_000], "<u2").tobytes())
    source = open_source(tmp_path)
    for sequence in range(8, 16):  # the whole block is not to be trusted
        with pytest.raises(DataError, match=r"shard-000000\.tar: block 1 at offset \d+: corrupt"):
            read(source, sequence)
    read(source, 7)
    read(source, 16)


# --- many at once -----------------------------------------------------------------------------------------------------


def test_rows_are_filled_where_they_are_wanted(tmp_path: Path) -> None:
    stream = write_corpus(tmp_path, 1_000)
    source, into = open_source(tmp_path), np.full((6, T + 1), -1)
    source.read(np.array([100, 3, 57]), into, np.array([4, 0, 5]))
    for row, sequence in ((4, 100), (0, 3), (5, 57)):
        assert into[row].tolist() == stream[sequence * T : sequence * T + T + 1].tolist()
    assert (into[[1, 2, 3]] == -1).all()
    source.read(np.array([9, 9]), into)
    assert into[0].tolist() == into[1].tolist() == stream[9 * T : 10 * T + 1].tolist()
    source.read(np.array([], dtype=np.int64), into)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 123), max_size=40))
def test_any_batch_is_what_its_sequences_are(corpus_of_1000: tuple[Source, np.ndarray], sequences: list[int]) -> None:
    source, stream = corpus_of_1000
    into = np.zeros((len(sequences), T + 1), np.int64)
    source.read(np.array(sequences, dtype=np.int64), into)
    assert into.tolist() == [stream[n * T : n * T + T + 1].tolist() for n in sequences]


@pytest.fixture(scope="module")
def corpus_of_1000(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, np.ndarray]:
    folder = tmp_path_factory.mktemp("corpus")
    return (lambda stream: (open_source(folder), stream))(write_corpus(folder, 1_000))


# --- opening ----------------------------------------------------------------------------------------------------------


def test_opening_reads_the_manifest_with_its_table_and_nothing_else(tmp_path: Path) -> None:
    stream = write_corpus(tmp_path, 1_000)
    for path in tmp_path.iterdir():
        if path.name not in ("manifest.json", "shards.npy", "shard-000003.tar", "shard-000003.idx.npy"):
            path.unlink()
    source = open_source(tmp_path)
    assert len(source) == 999 // T
    first = 3 * 3 * 64 // T
    assert read(source, first) == stream[first * T : first * T + T + 1].tolist()
    with pytest.raises(DataError, match=r"shard-000002\.tar: no such file"):
        read(source, first - 1)


def test_every_shard_may_end_with_a_part_of_a_block(tmp_path: Path) -> None:
    """As shards of several writers do, each of which ended its own stream."""
    streams = [write_corpus(tmp_path / str(part), tokens) for part, tokens in enumerate((140, 70, 300))]
    parts = [read_manifest(tmp_path / str(part)) for part in range(3)]
    entries = []
    for part, manifest in enumerate(parts):
        for shard in manifest.shards:
            name = shard_name(len(entries))
            for old, new in ((shard.name, name), (index_name(shard.name), index_name(name))):
                (tmp_path / str(part) / old).rename(tmp_path / new)
            entries.append(replace(shard, name=name))
    totals = {field: sum(getattr(shard, field) for shard in entries) for field in ("tokens", "documents")}
    write_manifest(tmp_path, replace(parts[0], shards=ShardTable.of(entries), **totals))
    source = open_source(tmp_path)
    expected = []
    for stream, manifest in zip(streams, parts, strict=True):
        start = 0
        for shard in manifest.shards:
            expected += [stream[start + n * T : start + n * T + T + 1].tolist() for n in range(shard.tokens // T)]
            start += shard.tokens
    assert [read(source, sequence) for sequence in range(len(source))] == expected
    assert source.dropped_tokens == totals["tokens"] - len(expected) * T > 0


def test_a_packed_corpus_is_read_with_the_length_it_was_packed_for(tmp_path: Path) -> None:
    write_corpus(tmp_path, 64 * 10 + 1)
    manifest = read_manifest(tmp_path)
    # The rule of a packed manifest: each id is the first of its bin, padding, or a target.
    packed = replace(manifest, layout="packed", packed_seq_len=16, pad_id=3, padding_tokens=1, tokens=600)
    write_manifest(tmp_path, packed)
    with pytest.raises(DataError, match=r"data\.seq_len=8, and source web .* was packed for sequences of 16") as caught:
        open_source(tmp_path, 8)
    assert "data.seq_len=16" in str(caught.value.hint)
    source = open_source(tmp_path, 16)
    assert (len(source), source.dropped_tokens) == (40, 0)


# --- whether all shards are there -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "short", "no index"])
@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_listing_finds_what_is_missing(tmp_path: Path, memory_address: str, kind: str, damage: str) -> None:
    write_corpus(tmp_path, 500)
    tar = tmp_path / "shard-000001.tar"
    if damage == "gone":
        tar.unlink()
    elif damage == "short":
        tar.write_bytes(tar.read_bytes()[:-1])
    else:
        (tmp_path / "shard-000001.idx.npy").unlink()
    upload(tmp_path, memory_address)
    source = Source("web", SourceConfig(str(tmp_path) if kind == "local" else memory_address), T)
    with pytest.raises(DataError, match=r"1 files do not fit the manifest:\n  - shard-000001"):
        source.check_shards()


def test_a_whole_folder_passes(tmp_path: Path, memory_address: str) -> None:
    write_corpus(tmp_path, 500)
    upload(tmp_path, memory_address)
    for address in (str(tmp_path), memory_address):
        Source("web", SourceConfig(address), T).check_shards()


def test_of_very_many_files_on_a_disk_the_names_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path, 500)
    monkeypatch.setattr("pretrain.data.source.MANY_SHARDS", 1)
    tar = tmp_path / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    source = open_source(tmp_path)
    source.check_shards()
    with pytest.raises(DataError, match=r"shard-000001\.tar: \d+ bytes, the manifest says"):
        read(source, 3 * 8)
    tar.unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: missing"):
        source.check_shards()


# --- object stores ----------------------------------------------------------------------------------------------------


def test_a_store_is_read_as_a_folder_is(tmp_path: Path, memory_address: str) -> None:
    write_corpus(tmp_path, 1_000)
    upload(tmp_path, memory_address)
    local, remote = open_source(tmp_path), Source("web", SourceConfig(memory_address), T)
    assert local.ordered() == remote.ordered()
    assert (local.memory is None, remote.memory is None) == (True, False)
    assert (local.folder, remote.folder) == (str(tmp_path), memory_address)
    everything = np.arange(len(local))
    a, b = np.zeros((2, len(local), T + 1), np.int64)
    local.read(everything, a)
    remote.read(everything, b)
    assert (a == b).all()
    assert [local.place(n) for n in (0, 50, 120)] == [remote.place(n) for n in (0, 50, 120)]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
@pytest.mark.parametrize("name", ["manifest.json", "shards.npy"])
def test_a_store_without_a_whole_manifest_is_refused(
    memory_address: str, name: str, content: bytes | None, no_waits: None, tmp_path: Path
) -> None:
    write_corpus(tmp_path, 100)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    upload(tmp_path, memory_address)
    with pytest.raises(DataError, match=name) as caught:
        Source("web", SourceConfig(memory_address), T)
    assert caught.value.hint


def test_sources_come_by_name_whatever_the_file_says(tmp_path: Path) -> None:
    configs = {}
    for name in ("web", "books", "code"):
        write_corpus(tmp_path / name, 100)
        configs[name] = SourceConfig(str(tmp_path / name))
    assert [source.name for source in open_sources(configs, T)] == ["books", "code", "web"]


def test_what_the_order_is_told_changes_with_the_content_only(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a", 500)
    write_corpus(tmp_path / "same", 500)
    write_corpus(tmp_path / "other", [*range(499), 7])
    a, same, other = (open_source(tmp_path / name).ordered() for name in ("a", "same", "other"))
    assert a == same
    assert a.sequences == 499 // T
    assert a.fingerprint != other.fingerprint


def test_bytes_per_token_are_those_of_the_text(tmp_path: Path) -> None:
    write_corpus(tmp_path, 101, text_bytes=450)
    assert open_source(tmp_path).bytes_per_token == 4.5
