"""Ids from members that someone else wrote: exactly what NumPy and json give, or a reason."""

import gzip
import io
import json
import random
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tars import gzip_bomb, ids_by_other_readers, listing, mutate, npy
from tokenizer.corpus.readers.tar_members import MAX_MEMBER_BYTES, UnusableError
from tokenizer.encoding.foreign import id_arrays as foreign_ids
from tokenizer.encoding.foreign.id_arrays import MAX_JSON_BYTES, decode_ids, decode_npy

IDS = [5, 0, 127, 9]


def refused(name: str, data: bytes, field: str | None = None) -> tuple[str, str]:
    with pytest.raises(UnusableError) as error:
        decode_ids(name, data, field)
    return error.value.reason, error.value.detail


def npy_with(header: str, data: bytes = bytes(8), version: bytes = b"\1\0") -> bytes:
    size = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + size + header.encode("latin1") + data


@pytest.mark.parametrize("dtype", [f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in "1248"])
def test_integers_of_any_width_order_and_sign_are_read(dtype: str) -> None:
    assert decode_ids("a.npy", npy(IDS, dtype)).tolist() == IDS
    assert decode_ids("a.npy.gz", gzip.compress(npy(IDS, dtype))).tolist() == IDS


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_npy_version_is_read(version: tuple[int, int]) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array(IDS), version=version)
    assert decode_npy(file.getvalue()).tolist() == IDS


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<i8', 'fortran_order': True, 'shape': (1,), }\n",
        "{'shape': (1,), 'fortran_order': False, 'descr': '<i8'}",
        "{'descr':'<i8','fortran_order':False,'shape':( 1 , ),}   \n",
    ],
)
def test_headers_of_other_writers_are_read(header: str) -> None:
    assert decode_npy(npy_with(header)).tolist() == [0]


GOOD_HEADER = "{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }\n"
WRONG_NPY = {
    "empty": (b"", "broken npy", "does not begin"),
    "magic alone": (b"\x93NUMPY", "broken npy", "does not begin"),
    "version 4": (npy_with(GOOD_HEADER, version=b"\4\0"), "broken npy", "does not begin"),
    "version 1.1": (npy_with(GOOD_HEADER, version=b"\1\1"), "broken npy", "does not begin"),
    "header of 4 GiB": (b"\x93NUMPY\2\0\xff\xff\xff\xff" + b"{" * 99, "broken npy", "a header of 4294967295 bytes"),
    "header over the limit": (npy_with(GOOD_HEADER.ljust(1025)), "broken npy", "a header of 1025 bytes, over 1024"),
    "header beyond the end": (npy_with(GOOD_HEADER)[:50], "broken npy", "a header of"),
    "objects": (npy_with(GOOD_HEADER.replace("<i8", "|O")), "not integers", "dtype |O"),
    "floats": (npy([1.0], "<f8"), "not integers", "<f8"),
    "bool": (npy([True], "|b1"), "not integers", "|b1"),
    "strings": (npy(["12"], "<U2"), "not integers", "<U2"),
    "dates": (npy_with(GOOD_HEADER.replace("<i8", "<M8[s]")), "not integers", "<M8[s]"),
    "16-byte integers": (npy_with(GOOD_HEADER.replace("<i8", "<i16")), "not integers", "<i16"),
    "records": (npy_with(GOOD_HEADER.replace("'<i8'", "[('a', '<i8')]")), "broken npy", "unreadable header"),
    "two dimensions": (npy([[1, 2]], "<i4"), "not one-dimensional", "(1, 2)"),
    "no dimension": (npy(7, "<i8"), "not one-dimensional", "()"),
    "a number as shape": (npy_with(GOOD_HEADER.replace("(1,)", "(1)")), "not one-dimensional", "(1)"),
    "huge shape": (npy_with(GOOD_HEADER.replace("(1,)", "(99999999999999999,)")), "broken npy", "8 bytes of data"),
    "negative shape": (npy_with(GOOD_HEADER.replace("(1,)", "(-1,)")), "broken npy", "unreadable header"),
    "product as shape": (npy_with(GOOD_HEADER.replace("(1,)", "(1*1,)")), "broken npy", "unreadable header"),
    "data missing": (npy_with(GOOD_HEADER, bytes(7)), "broken npy", "7 bytes of data"),
    "data left over": (npy_with(GOOD_HEADER, bytes(9)), "broken npy", "9 bytes of data"),
    "a key twice": (npy_with(GOOD_HEADER.replace("}", "'descr': '<i8', }")), "broken npy", "unreadable header"),
    "a key missing": (npy_with("{'descr': '<i8', 'shape': (1,), }"), "broken npy", "unreadable header"),
    "a key too many": (npy_with(GOOD_HEADER.replace("}", "'a': '<i8', }")), "broken npy", "unreadable header"),
    "no key known": (npy_with("{'a': '<i8', 'fortran_order': True, 'b': (1,)}"), "broken npy", "unreadable header"),
    "code": (npy_with("__import__('os').system('true')"), "broken npy", "unreadable header"),
    "code behind": (npy_with(GOOD_HEADER.strip() + " or 1"), "broken npy", "unreadable header"),
    "code in front": (npy_with("[] or " + GOOD_HEADER), "broken npy", "unreadable header"),
    "deep": (npy_with("(" * 1000), "broken npy", "unreadable header"),
    "order is a number": (npy_with(GOOD_HEADER.replace("False", "0")), "broken npy", "unreadable header"),
    "order is a shape": (npy_with(GOOD_HEADER.replace("False", "(1,)")), "broken npy", "unreadable header"),
    "dtype is a shape": (npy_with(GOOD_HEADER.replace("'<i8'", "(1,)")), "not integers", "(1,)"),
    "shape is a string": (npy_with(GOOD_HEADER.replace("(1,)", "'(1,)'")), "not one-dimensional", "'(1,)'"),
}


@pytest.mark.parametrize("name", WRONG_NPY)
def test_an_npy_that_is_not_plain_is_refused(name: str) -> None:
    data, reason, detail = WRONG_NPY[name]
    found = refused("a.npy", data)
    assert found[0] == reason
    assert detail in found[1]
    assert len(found[1]) < 200


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.sampled_from([None, "tokens", "input_ids", "ä"]))
def test_json_lists_are_read_alone_and_in_objects(ids: list[int], field: str | None) -> None:
    document = ids if field is None else {"text": "[1]", "score": 0.5, field: ids, "more": {"tokens": []}}
    data = json.dumps(document).encode()
    asked = field if field == "ä" else None
    assert decode_ids("a.json", data, asked).tolist() == ids
    assert decode_ids("a.json.gz", gzip.compress(data), asked).tolist() == ids


def test_a_named_field_may_be_any() -> None:
    both = b'{"tokens": [1], "input_ids": [2]}'
    assert decode_ids("a.json", both, "input_ids").tolist() == [2]
    assert refused("a.json", both)[1].startswith("both of 'tokens' and 'input_ids'")
    assert refused("a.json", both, "ids") == (
        "no token field",
        "no field 'ids' among tokens, input_ids: name it with --field",
    )


WRONG_JSON = {
    "empty": (b"", "broken JSON", "Expecting value"),
    "cut": (b"[1, 2", "broken JSON", "delimiter"),
    "something behind": (b"[1] [2]", "broken JSON", "Extra data"),
    "not UTF-8": (b'{"tokens": [1], "a": "\xff"}', "broken JSON", "utf-8"),
    "UTF-16": ("[1, 2]".encode("utf-16"), "broken JSON", "utf-8"),
    "byte order mark": (b"\xef\xbb\xbf[1]", "broken JSON", "BOM"),
    "deep list": (b"[" * 100_000, "broken JSON", "recursion"),
    "deep object": (b'{"tokens":' * 100_000, "broken JSON", "recursion"),
    "a name twice": (b'{"tokens": [1], "tokens": [2]}', "broken JSON", "twice"),
    "a name twice inside": (b'{"tokens": [1], "a": {"b": 1, "b": 2}}', "broken JSON", "twice"),
    "an endless number": (b"[" + b"9" * 5000 + b"]", "broken JSON", "Exceeds the limit"),
    "NaN": (b"[NaN]", "broken JSON", "NaN"),
    "leading zero": (b"[01]", "broken JSON", "delimiter"),
    "a number": (b"7", "no list of integers", "found int"),
    "a string": (b'"[1]"', "no list of integers", "found str"),
    "nothing": (b"null", "no list of integers", "found NoneType"),
    "field with text": (b'{"tokens": "1 2"}', "no list of integers", "found str"),
    "floats": (b"[1, 2.0]", "no list of integers", "the list holds float"),
    "exponents": (b"[1e3]", "no list of integers", "the list holds float"),
    "bool": (b"[1, true]", "no list of integers", "the list holds bool"),
    "strings": (b'["1", null]', "no list of integers", "the list holds NoneType, str"),
    "lists": (b"[[1, 2]]", "no list of integers", "the list holds list"),
    "65 bits": (b"[18446744073709551616]", "id outside the vocabulary", "64 bits"),
    "no field": (
        b'{"text": "a", "x\\u001b": 1}',
        "no token field",
        "none of 'tokens' and 'input_ids' among text, x\\x1b",
    ),
    "empty object": (b"{}", "no token field", "none of"),
}


@pytest.mark.parametrize("name", WRONG_JSON)
def test_json_that_is_no_list_of_integers_is_refused(name: str) -> None:
    data, reason, detail = WRONG_JSON[name]
    for member, content in (("a.json", data), ("a.json.gz", gzip.compress(data))):
        found = refused(member, content)
        assert found[0] == reason
        assert detail in found[1]


WRONG_GZIP = {
    "empty": (b"", "truncated"),
    "not gzip": (listing(IDS), "incorrect header"),
    "zlib": (zlib.compress(listing(IDS)), "incorrect header"),
    "cut": (gzip.compress(listing(IDS))[:-9], "truncated"),
    "cut in its checksum": (gzip.compress(listing(IDS))[:-1], "truncated"),
    "wrong checksum": (gzip.compress(listing(IDS))[:-5] + b"\0" + gzip.compress(listing(IDS))[-4:], "data check"),
    "wrong length": (gzip.compress(listing(IDS))[:-1] + b"\1", "length check"),
    "something behind": (gzip.compress(listing(IDS)) + b"\0", "1 bytes follow its end"),
    "two": (gzip.compress(listing(IDS)) * 2, "bytes follow its end"),
}


@pytest.mark.parametrize("name", WRONG_GZIP)
def test_damaged_gzip_is_refused(name: str) -> None:
    data, detail = WRONG_GZIP[name]
    reason, found = refused("a.json.gz", data)
    assert reason == "broken gzip"
    assert detail in found


@pytest.mark.parametrize(
    ("name", "limit"), [("a.json.gz", MAX_JSON_BYTES), ("a.npy.gz", MAX_MEMBER_BYTES)], ids=["json", "npy"]
)
def test_a_gzip_bomb_costs_its_limit_and_no_more(name: str, limit: int) -> None:
    bomb = gzip_bomb()
    assert len(bomb) < 2 << 20
    tracemalloc.start()
    try:
        assert refused(name, bomb) == ("too large", f"{len(bomb)} bytes of gzip expand to more than {limit}")
        assert tracemalloc.get_traced_memory()[1] < 3 * limit
    finally:
        tracemalloc.stop()


def test_the_limits_are_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_ids, "MAX_JSON_BYTES", 10)
    monkeypatch.setattr(foreign_ids, "MAX_IDS", 3)
    assert len(decode_ids("a.json", b"[1,2,3]   ")) == len(decode_ids("a.json.gz", gzip.compress(b"[1,2,3]   "))) == 3
    assert refused("a.json", b"[1,2,3]    ") == ("too large", "11 bytes, over 10")
    assert refused("a.json.gz", gzip.compress(b"[1,2,3]    "))[0] == "too large"
    assert refused("a.json", b"[1,2,3,4]") == ("too large", "4 ids, over 3")


def test_other_suffixes_are_unknown() -> None:
    for name in ("a.txt", "a.npz", "a.gz", "a.pyd", "a.json.zst", "json", "a.JSON"):
        assert refused(name, b"[1]")[0] == "unknown format"


MUTATED = {
    "a.npy": npy(list(range(40))),
    "b.npy": npy(list(range(40)), ">i8"),
    "a.json": listing(list(range(40))),
    "b.json": json.dumps({"text": "a", "tokens": [4, 5], "n": {"tokens": [1]}}).encode(),
    "a.json.gz": gzip.compress(listing(list(range(40))), mtime=0),
    "a.npy.gz": gzip.compress(npy(list(range(40))), mtime=0),
}


@pytest.mark.parametrize("name", MUTATED)
def test_what_is_accepted_of_damaged_members_is_what_numpy_and_json_see(name: str) -> None:
    draw = random.Random(name)
    accepted = 0
    for _ in range(1_500):
        data = mutate(MUTATED[name], draw)
        try:
            ids = decode_ids(name, data)
        except UnusableError:
            continue
        accepted += 1
        assert ids.tolist() == ids_by_other_readers(name, data)
        if name.endswith(".gz"):
            assert ids.tolist() == list(range(40))  # the crc32 covers them
    assert accepted < 1_200
