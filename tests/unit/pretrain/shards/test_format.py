import dataclasses
import hashlib
import io
import json
import subprocess
import tarfile
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.writer import TarWriter

from pretrain.errors import DataError
from pretrain.shards import writer as write_shards
from pretrain.shards.format import CRC32, DOCUMENTS, OFFSET, TOKENS, check_folder, index_name, read_index
from pretrain.shards.manifest import FORMAT, Manifest
from pretrain.shards.table import ShardEntry, ShardTable
from pretrain.shards.writer import ShardWriter, clear_output
from pretrain.storage.store import LocalStore

T = 16


def write(
    folder: Path, documents: list[list[int]], *, vocab_size: int = 1_000, blocks_per_shard: int = 3, at_once: int = 2
):
    folder.mkdir(parents=True, exist_ok=True)
    itemsize = 2 if vocab_size <= 65_536 else 4
    with ShardWriter(
        folder, vocab_size=vocab_size, block_tokens=T, shard_bytes=blocks_per_shard * T * itemsize
    ) as writer:
        for start in range(0, len(documents), at_once):
            part = documents[start : start + at_once]
            lengths = np.array([len(document) for document in part])
            writer.add(np.array([token for document in part for token in document], np.int64), lengths)
        return writer.finish()


def documents_of(total: int, length: int = 7) -> list[list[int]]:
    stream = [token % 997 for token in range(total)]
    return [stream[start : start + length] for start in range(0, total, length)]


def read_blocks(folder: Path, entries: tuple[ShardEntry, ...], dtype: str = "<u2") -> list[np.ndarray]:
    """Payloads read at the offsets of the index, from the raw bytes of the tars."""
    blocks = []
    for entry in entries:
        data = (folder / entry.name).read_bytes()
        assert len(data) == entry.bytes
        assert hashlib.sha256(data).hexdigest() == entry.sha256
        for offset, tokens, _, crc32 in read_index(LocalStore(folder), entry, dtype).tolist():
            payload = data[offset : offset + tokens * np.dtype(dtype).itemsize]
            assert zlib.crc32(payload) == crc32
            blocks.append(np.frombuffer(payload, dtype))
    return blocks


def read_ends(folder: Path, entries: tuple[ShardEntry, ...]) -> list[list[int]]:
    ends = []
    for entry in entries:
        with tarfile.open(folder / entry.name) as tar:
            for member in tar:
                if member.name.endswith(".doc.npy"):
                    ends.append(np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False).tolist())
    return ends


# 2 is the smallest corpus; T+1 fills one block exactly; 2T+1 two; the rest lie beside these and beside a shard's end.
@pytest.mark.parametrize("total", [2, 3, T, T + 1, T + 2, 2 * T + 1, 2 * T + 2, 3 * T + 1, 3 * T + 2, 200])
@pytest.mark.parametrize("vocab_size", [1_000, 70_000])
def test_no_target_and_no_document_is_lost(tmp_path: Path, total: int, vocab_size: int) -> None:
    documents = documents_of(total)
    entries = write(tmp_path, documents, vocab_size=vocab_size)
    blocks = read_blocks(tmp_path, entries, "<u2" if vocab_size == 1_000 else "<u4")
    assert all(len(block) == T + 1 for block in blocks[:-1])
    assert all(before[-1] == after[0] for before, after in pairwise(blocks))
    stream = [blocks[0][0], *(token for block in blocks for token in block[1:])]
    assert stream == [token for document in documents for token in document]
    assert sum(entry.tokens for entry in entries) == total - 1
    assert sum(entry.documents for entry in entries) == len(documents)
    starts = [block * T for block in range(len(blocks))]
    ends = [start + end for start, block in zip(starts, read_ends(tmp_path, entries), strict=True) for end in block]
    assert ends == np.cumsum([len(document) for document in documents]).tolist()


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=20), at_once=st.integers(1, 20))
def test_bytes_do_not_depend_on_how_documents_arrive(tmp_path_factory, lengths: list[int], at_once: int) -> None:
    documents = [[token % 9 for token in range(length)] for length in lengths]
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    assert write(one, documents, at_once=1) == write(other, documents, at_once=at_once)


# webdataset leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_tar_and_webdataset_read_the_shards(tmp_path: Path) -> None:
    entries = write(tmp_path, documents_of(100))
    assert [entry.blocks for entry in entries] == [3, 3, 1]
    first = tmp_path / entries[0].name
    listed = subprocess.run(["tar", "tf", first], check=True, capture_output=True, text=True).stdout.split()
    assert listed[:3] == ["000000000000.doc.npy", "000000000000.tok.npy", "000000000001.doc.npy"]
    samples = list(webdataset.WebDataset(str(first), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["000000000000", "000000000001", "000000000002"]
    blocks = read_blocks(tmp_path, entries)
    assert all((sample["tok.npy"] == block).all() for sample, block in zip(samples, blocks[:3], strict=True))
    assert samples[0]["doc.npy"].tolist() == [7, 14]


def test_the_tar_is_plain_ustar_with_nothing_of_this_machine(tmp_path: Path) -> None:
    entries = write(tmp_path, documents_of(100))
    data = (tmp_path / entries[0].name).read_bytes()
    assert data[257:265] == b"ustar\x0000"
    with tarfile.open(tmp_path / entries[0].name) as tar:
        members = tar.getmembers()
        assert tar.pax_headers == {}
    # A PAX header would be a member of its own type before each of these.
    assert {(m.type, m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in members} == {
        (tarfile.REGTYPE, 0, 0o444, 0, 0, "", "")
    }
    assert [member.offset_data - member.offset for member in members] == [512] * 6
    # Changes only with the format: the same bytes on every machine.
    assert entries[0].sha256 == "36c86c82bfe14dd718597e77b56d75efaa1eb14e32efb4f0edfa8731364e3767"


def test_the_tar_is_byte_for_byte_what_webdataset_writes(tmp_path: Path) -> None:
    entries = write(tmp_path, documents_of(100))
    for entry in entries:
        with tarfile.open(tmp_path / entry.name) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        options = {"user": "", "group": "", "mode": 0o444, "mtime": 0, "encoder": False, "compress": False}
        again = io.BytesIO()
        with TarWriter(again, **options) as writer:
            for key in sorted({name.partition(".")[0] for name in members}):
                sample = {name.partition(".")[2]: data for name, data in members.items() if name.startswith(key)}
                writer.write({"__key__": key, **sample})
        assert again.getvalue() == (tmp_path / entry.name).read_bytes()


def test_shards_of_a_task_are_keyed_by_the_task_and_count_on(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, vocab_size=1_000, block_tokens=T, shard_bytes=3 * T * 2, task=42) as writer:
        writer.add(np.arange(100), np.array([100]))
        entries = writer.finish()
    keys = []
    for entry in entries:
        with tarfile.open(tmp_path / entry.name) as tar:
            keys += [member.name.partition(".")[0] for member in tar if member.name.endswith("tok.npy")]
    assert keys == [f"000042{block:06d}" for block in range(7)]


def test_more_blocks_than_a_key_can_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_shards, "MOST_BLOCKS", 4)
    with pytest.raises(DataError, match="more than 4 blocks of 16 tokens"):
        with ShardWriter(tmp_path, vocab_size=1_000, block_tokens=T, shard_bytes=3 * T * 2, task=1) as writer:
            writer.add(np.arange(100), np.array([100]))


def test_an_id_outside_the_vocabulary_is_refused_before_the_cast(tmp_path: Path) -> None:
    for wrong in (-1, 1_000, 65_537):
        with pytest.raises(DataError, match=f"token id {wrong} is not between 0 and vocab_size-1 = 999"):
            write(tmp_path, [[1, wrong, 2]])


@pytest.mark.parametrize("documents", [[], [[1]]])
def test_less_than_two_tokens_is_refused(tmp_path: Path, documents: list[list[int]]) -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        write(tmp_path, documents)


def test_a_failed_write_leaves_no_open_file_and_leftovers_are_cleared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="token id"):
        write(tmp_path, [*documents_of(120), [5_000]])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"shard-000000.tar", "shard-000000.idx.npy", "shard-000001.tar", "shard-000001.idx.npy"}
    (tmp_path / "notes.txt").write_text("the user's own")
    for name in ("manifest.json", "shards.npy", "shards.npy.tmp", "manifest.json.tmp", "problems.jsonl"):
        (tmp_path / name).write_text("ours")
    clear_output(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def manifest_of(entries: tuple[ShardEntry, ...]) -> Manifest:
    return Manifest(
        format=FORMAT,
        dtype="<u2",
        vocab_size=1_000,
        bos_id=1,
        eos_id=2,
        tokenizer_sha256="b" * 64,
        sentencepiece_version="0.2.3",
        block_tokens=T,
        layout="stream",
        shuffle_seed=0,
        tokens=sum(entry.tokens for entry in entries),
        documents=sum(entry.documents for entry in entries),
        text_bytes=100,
        skipped={},
        shards=ShardTable.of(entries),
    )


def test_check_shards_lists_every_problem(tmp_path: Path) -> None:
    entries = write(tmp_path, documents_of(150))
    check_folder(LocalStore(tmp_path), manifest_of(entries), thorough=True)
    (tmp_path / entries[0].name).unlink()
    with (tmp_path / entries[1].name).open("ab") as file:
        file.write(b"x")
    (tmp_path / index_name(entries[2].name)).unlink()
    with pytest.raises(DataError) as caught:
        check_folder(LocalStore(tmp_path), manifest_of(entries), thorough=True)
    for problem in ("3 files", "shard-000000.tar: missing", "shard-000001.tar: ", "shard-000002.idx.npy: missing"):
        assert problem in str(caught.value)


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, ShardEntry, np.ndarray]:
    (entry,) = write(tmp_path, documents_of(3 * T + 1))
    return tmp_path, entry, read_index(LocalStore(tmp_path), entry)


@pytest.mark.parametrize(
    ("row", "column", "value", "rule"),
    [
        (1, OFFSET, -512, "must lie inside"),
        (2, OFFSET, 1 << 40, "must lie inside"),
        (2, OFFSET, 10_240 - 33, "must lie inside"),
        (2, OFFSET, 700, "must not overlap"),
        (1, TOKENS, 1, "at least 2"),
        (1, TOKENS, 1 << 62, "must fit the shard"),
        (1, TOKENS, 16, "holds 47 tokens, the manifest says 48"),
        (1, DOCUMENTS, -1, "between 0 and its tokens"),
        (1, DOCUMENTS, 18, "between 0 and its tokens"),
        (1, DOCUMENTS, 5, "documents, the manifest says"),
        (1, CRC32, 1 << 32, "crc32"),
        (1, CRC32, -1, "crc32"),
    ],
)
def test_every_bad_index_row_is_refused(shard, row: int, column: int, value: int, rule: str) -> None:
    folder, entry, index = shard
    assert entry.bytes == 10_240
    index[row, column] = value
    np.save(folder / index_name(entry.name), index)
    with pytest.raises(DataError, match=rule):
        read_index(LocalStore(folder), entry)


def test_the_item_size_decides_whether_a_payload_fits(shard) -> None:
    folder, entry, index = shard
    index[2, OFFSET] = entry.bytes - 2 * (T + 1)
    np.save(folder / index_name(entry.name), index)
    read_index(LocalStore(folder), entry, "<u2")
    with pytest.raises(DataError, match="must lie inside"):
        read_index(LocalStore(folder), entry, "<u4")


def test_files_that_are_no_index_are_refused(shard) -> None:
    folder, entry, index = shard
    path = folder / index_name(entry.name)
    good = path.read_bytes()
    header_of_a_petabyte = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header_of_a_petabyte, {"descr": "<i8", "fortran_order": False, "shape": (1 << 46, 4)}
    )
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    saved = io.BytesIO()
    np.save(saved, index.astype(np.int32))
    for content in (b"", b"nonsense", good[:-1], good + b"x", good[:60], pickled.getvalue(), saved.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"shard-000000\.idx\.npy"):
            read_index(LocalStore(folder), entry)
    path.write_bytes(header_of_a_petabyte.getvalue())
    with pytest.raises(DataError, match="not an index of"):
        read_index(LocalStore(folder), entry)
    path.write_bytes(good)
    with pytest.raises(DataError, match="not an index of"):
        read_index(LocalStore(folder), dataclasses.replace(entry, blocks=2))
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_index(LocalStore(folder), entry)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 127), value=st.integers(0, 255))
def test_a_damaged_header_is_a_data_error_or_harmless(shard, position: int, value: int) -> None:
    folder, entry, index = shard
    path = folder / index_name(entry.name)
    buffer = io.BytesIO()
    np.save(buffer, index)
    damaged = bytearray(buffer.getvalue())
    damaged[position] = value
    path.write_bytes(damaged)
    try:
        found = read_index(LocalStore(folder), entry)
    except DataError:
        return
    assert (found == index).all()


def test_entries_are_plain_json(shard) -> None:
    _, entry, _ = shard
    assert ShardEntry(**json.loads(json.dumps(dataclasses.asdict(entry)))) == entry


def test_an_index_larger_than_a_reader_holds_is_refused_before_it_is_read(shard) -> None:
    folder, entry, _ = shard
    with pytest.raises(DataError, match=r"1099511627776 blocks, and an index of more than 64 MiB is not read"):
        read_index(LocalStore(folder), dataclasses.replace(entry, blocks=1 << 40))


def test_only_the_last_block_of_a_shard_may_be_short(tmp_path: Path) -> None:
    (entry,) = write(tmp_path, documents_of(2 * T + 5))
    assert read_index(LocalStore(tmp_path), entry, block_tokens=T)[:, TOKENS].tolist() == [T + 1, T + 1, 5]
    for other in (T - 1, T + 1):
        with pytest.raises(DataError, match=rf"row 0 .*must have {other} tokens and one"):
            read_index(LocalStore(tmp_path), entry, block_tokens=other)
    index = np.load(tmp_path / index_name(entry.name))
    index[1:, TOKENS] += [-1, 1]
    np.save(tmp_path / index_name(entry.name), index)
    read_index(LocalStore(tmp_path), entry)
    with pytest.raises(DataError, match=r"row 1 .*and only the last of a shard fewer"):
        read_index(LocalStore(tmp_path), entry, block_tokens=T)


def test_a_folder_with_many_gaps_is_a_short_message(tmp_path: Path) -> None:
    entries = write(tmp_path, documents_of(3_000))
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(DataError) as caught:
        check_folder(LocalStore(tmp_path), manifest_of(entries), thorough=False)
    assert f"{2 * len(entries)} files do not fit" in caught.value.message
    assert f"and {2 * len(entries) - 20} more" in caught.value.message
    assert len(caught.value.message.splitlines()) == 22
