from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.config.schema import SourceConfig
from pretrain.data.manifest import read_manifest
from pretrain.data.shards import OFFSET, read_index
from pretrain.data.source import Source, open_sources
from pretrain.errors import DataError
from tests.support.shards import write_corpus

T = 8


def open_source(folder: Path, seq_len: int = T, name: str = "web") -> Source:
    return Source(name, SourceConfig(str(folder)), seq_len)


def read(source: Source, sequence: int) -> list[int]:
    row = np.empty(source.seq_len + 1, np.int64)
    source.read(sequence, row)
    return row.tolist()


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
    offset = int(read_index(tmp_path, manifest.shards[0])[1, OFFSET])
    with (tmp_path / manifest.shards[0].name).open("r+b") as file:
        file.seek(offset + 2 * 11)
        file.write(np.array([1_000], "<u2").tobytes())
    source = open_source(tmp_path)
    damaged = (64 + 11) // T
    with pytest.raises(DataError, match=rf"sequence {damaged} holds id 1000, and the vocabulary has 1000"):
        read(source, damaged)
    read(source, damaged + 1)


@pytest.mark.parametrize("damage", ["gone", "short", "no index"])
def test_a_damaged_folder_is_refused_when_it_is_opened(tmp_path: Path, damage: str) -> None:
    write_corpus(tmp_path, 500)
    tar = tmp_path / "shard-000001.tar"
    if damage == "gone":
        tar.unlink()
    elif damage == "short":
        tar.write_bytes(tar.read_bytes()[:-1])
    else:
        (tmp_path / "shard-000001.idx.npy").unlink()
    with pytest.raises(DataError, match=r"shard-000001"):
        open_source(tmp_path)


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
