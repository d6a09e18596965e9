import hashlib
import io

import numpy as np
import pytest

from pretrain.errors import DataError
from pretrain.shards.table import ShardEntry, ShardTable, parse_table, shard_name, table_bytes, table_file

ENTRIES = [ShardEntry(shard_name(n), 1_000 + n, f"{n + 200:02x}" * 32, 2 + n, 30 + n, 4 + n) for n in range(3)]
TABLE = ShardTable.of(ENTRIES)


def test_entries_come_back_by_number_and_in_a_loop() -> None:
    assert list(TABLE) == [TABLE[n] for n in range(3)] == ENTRIES
    assert (TABLE[-1], len(TABLE)) == (ENTRIES[2], 3)
    assert {type(value) for value in vars(TABLE[1]).values()} == {str, int}
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            TABLE[beyond]


@pytest.mark.parametrize("column", ["bytes", "blocks", "tokens", "documents"])
def test_columns_are_integers_that_cannot_be_changed(column: str) -> None:
    for table in (TABLE, parsed(table_file(TABLE))):
        values = getattr(table, column)
        assert values.tolist() == [getattr(entry, column) for entry in ENTRIES]
        assert values.dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 7


def parsed(data: bytes, shards: int = 3) -> ShardTable:
    return parse_table(data, shards, hashlib.sha256(data).hexdigest(), "here")


def test_tables_are_equal_by_their_values() -> None:
    assert parsed(table_file(TABLE)) == TABLE == ShardTable.of(ENTRIES)
    assert ShardTable.of(ENTRIES[:2]) != TABLE
    assert ENTRIES != TABLE


def test_the_file_is_an_npy_file_that_numpy_reads() -> None:
    data = table_file(TABLE)
    assert len(data) == table_bytes(3) == 192 + 3 * 64
    found = np.load(io.BytesIO(data))
    assert found.dtype.names == ("bytes", "blocks", "tokens", "documents", "sha256")
    assert found["tokens"].tolist() == [30, 31, 32]
    assert [row.tobytes().hex() for row in found["sha256"]] == [entry.sha256 for entry in ENTRIES]
    assert len(np.load(io.BytesIO(table_file(ShardTable(TABLE.rows[:1].repeat(1_000_000)))))) == 1_000_000


def test_the_header_never_changes() -> None:
    assert table_file(TABLE)[:192] == (
        b"\x93NUMPY\x01\x00\xb6\x00{'descr': [('bytes', '<i8'), ('blocks', '<i8'), ('tokens', '<i8'), ('documents', '<i8'), "
        b"('sha256', '|u1', (32,))], 'fortran_order': False, 'shape': (3,), }" + b" " * 25 + b"\n"
    )


@pytest.mark.parametrize(
    "other",
    [
        np.zeros(3, "V64"),
        np.zeros(3, [("blocks", "<i8"), ("bytes", "<i8"), ("rest", "V48")]),
        np.zeros((3, 8), "<i8"),
        np.array([None] * 24, dtype=object),
    ],
    ids=lambda other: str(other.dtype),
)
def test_another_array_of_the_same_size_is_refused(other: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, other)
    data = file.getvalue()[: table_bytes(3)].ljust(table_bytes(3), b"\0")
    with pytest.raises(DataError, match="here: its header is not that of a table of 3 shards"):
        parsed(data)


def test_a_table_of_another_corpus_is_refused() -> None:
    other = ShardTable.of([*ENTRIES[:2], ShardEntry(**{**vars(ENTRIES[2]), "tokens": 31})])
    with pytest.raises(DataError, match="here: 384 bytes, and a table of 2 shards has 320"):
        parsed(table_file(TABLE), 2)
    with pytest.raises(DataError, match="here: corrupt: its sha256 is not the one in the manifest") as caught:
        parse_table(table_file(other), 3, "0" * 64, "here")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["shard-000001.tar", "part.tar", "../shard-000000.tar", "", "shard-0.tar"])
def test_a_name_that_is_not_its_numbers_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"shard 0 is named .*, and must be named 'shard-000000\.tar'"):
        ShardTable.of([ShardEntry(**{**vars(ENTRIES[0]), "name": name})])


@pytest.mark.parametrize("sha256", ["", "a" * 63, "A" * 64, "a" * 64 + "\n", "g" * 64, "a " * 32])
def test_what_is_no_sha256_is_refused(sha256: str) -> None:
    with pytest.raises(DataError, match=r"shard-000000\.tar: sha256=.* is not 64 lower-case"):
        ShardTable.of([ShardEntry(**{**vars(ENTRIES[0]), "sha256": sha256})])


def test_the_digest_follows_what_decides_the_tokens() -> None:
    others = [
        ShardTable.of([ShardEntry(**{**vars(ENTRIES[0]), **changes})])
        for changes in ({}, {"sha256": "c" * 64}, {"blocks": 3}, {"tokens": 31}, {"documents": 5})
    ]
    assert len({table.digest for table in (TABLE, *others)}) == 6
    assert ShardTable.of([ShardEntry(**{**vars(ENTRIES[0]), "bytes": 7})]).digest == others[0].digest
