"""The strict tar reader: what real programs write is read, and nothing else."""

import io
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset

from tests.support.tars import END, GNU, POSIX, files_by_tarfile, header, listing, member, padded, pax, pax_record
from tokenizer.corpus.readers.rejections import BROKEN_TAR, Rejection
from tokenizer.corpus.readers.tar_members import MAX_EXTENDED_BYTES, TarMember, parse_pax, read_members

GOOD = member(b"a.json", b"[1]")


def read(data: bytes, max_bytes: int = 1 << 20) -> list[TarMember | Rejection]:
    return list(read_members(io.BytesIO(data), "x.tar", lambda name: not name.endswith(".txt"), max_bytes=max_bytes))


def refused(data: bytes, max_bytes: int = 1 << 20) -> Rejection:
    """The one thing that is wrong with a tar."""
    (rejection,) = [found for found in read(data, max_bytes) if isinstance(found, Rejection)]
    return rejection


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.json", f"{'f' * 60}/{'n' * 60}.json", "ü/中.json"])
def test_what_tarfile_writes_is_read(tar_format: int, name: str) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for entry, data in ((name, b"[1]"), ("b.txt", b"not wanted"), ("c.json", bytes(513)), ("d.json", b"")):
            info = tarfile.TarInfo(entry)
            info.size, info.mtime = len(data), 1.5  # a fraction makes a PAX header
            tar.addfile(info, io.BytesIO(data))
    expected = [(name, b"[1]"), ("b.txt", None), ("c.json", bytes(513)), ("d.json", b"")]
    assert read(file.getvalue()) == expected


@pytest.mark.parametrize("tar_format", ["gnu", "oldgnu", "ustar", "pax", "posix"])
def test_what_gnu_tar_writes_is_read(tmp_path: Path, tar_format: str) -> None:
    folder = tmp_path / "files" / ("f" * 90)
    folder.mkdir(parents=True)
    (folder / f"{'n' * 80}.json").write_bytes(b"[1, 2]")
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "cf", archive, f"--format={tar_format}", "-C", tmp_path, "files"], check=True)
    assert read(archive.read_bytes()) == [(f"files/{'f' * 90}/{'n' * 80}.json", b"[1, 2]")]


def test_what_webdataset_writes_by_default_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a/b", "json": [1, 2], "x.txt": "text"})
    assert read((tmp_path / "a.tar").read_bytes()) == [("a/b.json", b"[1, 2]"), ("a/b.x.txt", None)]


def test_posix_prefixes_are_part_of_the_name_and_gnu_ones_are_not() -> None:
    assert read(member(b"a.json", b"", magic=POSIX, prefix=b"folder") + END) == [("folder/a.json", b"")]
    assert read(member(b"a.json", b"", magic=GNU, prefix=b"1234567") + END) == [("a.json", b"")]


def test_a_nul_type_is_a_plain_file() -> None:
    assert read(member(b"a.json", b"[1]", b"\0") + END) == [("a.json", b"[1]")]


def test_directories_and_harmless_headers_are_passed_over() -> None:
    data = member(b"a/../b/", b"", b"5") + pax(b"g", comment="a commit") + pax(mtime="1.5") + GOOD + END + bytes(9000)
    assert read(data) == [("a.json", b"[1]")]


def test_a_wanted_member_over_the_limit_is_skipped_and_others_may_be_larger() -> None:
    data = member(b"a.json", bytes(2000)) + member(b"a.txt", bytes(2000)) + member(b"b.json", bytes(1999)) + END
    rejection, *rest = read(data, max_bytes=1999)
    assert rejection == ("x.tar: a.json", "too large", "2000 bytes, over 1999")
    assert rest == [("a.txt", None), ("b.json", bytes(1999))]


SKIPPED = {
    "hard link": (header(b"a", 0, b"1"), "not a plain file", "a hard link"),
    "symbolic link": (header(b"a", 0, b"2"), "not a plain file", "a symbolic link"),
    "long symbolic link": (member(b"L", b"t" * 200, b"K") + header(b"a", 0, b"2"), "not a plain file", "symbolic link"),
    "character device": (header(b"a", 0, b"3"), "not a plain file", "a character device"),
    "block device": (header(b"a", 0, b"4"), "not a plain file", "a block device"),
    "FIFO": (header(b"a", 0, b"6"), "not a plain file", "a FIFO"),
    "PAX sparse 0.0": (
        pax(GNU__sparse__size="9", GNU__sparse__numblocks="1", GNU__sparse__offset="0", GNU__sparse__numbytes="9")
        + member(b"a.json", b"[1]"),
        "not a plain file",
        "a sparse file",
    ),
    "PAX sparse 0.1": (
        pax(GNU__sparse__size="9", GNU__sparse__map="0,9") + member(b"a.json", b"[1]"),
        "not a plain file",
        "a sparse file",
    ),
    "PAX sparse 1.0": (
        pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__name="a.json", GNU__sparse__realsize="9")
        + member(b"GNUSparseFile.0/a.json", b"1\n0\n9\n[1]"),
        "not a plain file",
        "a sparse file",
    ),
    "sparse of star": (pax(SCHILY__realsize="9") + member(b"a", b"[1]"), "not a plain file", "a sparse file"),
    "absolute name": (member(b"/a.json", b"[1]"), "unsafe name", "absolute"),
    "name that leaves": (member(b"b/../../a.json", b"[1]"), "unsafe name", "`..`"),
    "name in a prefix that leaves": (member(b"a.json", b"[1]", prefix=b".."), "unsafe name", "`..`"),
    "PAX name that leaves": (pax(path="../a.json") + member(b"a.json", b"[1]"), "unsafe name", "`..`"),
    "GNU name that leaves": (member(b"L", b"../a.json\0", b"L") + member(b"a.json", b"[1]"), "unsafe name", "`..`"),
    "PAX name with a NUL": (pax(path=b"a\0.json") + member(b"a.json", b"[1]"), "unsafe name", "NUL"),
    "empty name": (member(b"", b"[1]"), "unsafe name", "empty"),
    "file named as a folder": (member(b"a/", b"[1]"), "unsafe name", "ending in `/`"),
    "long name": (pax(path="n" * 4097) + member(b"a.json", b"[1]"), "unsafe name", "4,096"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_a_member_that_is_no_plain_file_is_refused_and_the_next_is_read(name: str) -> None:
    data, reason, detail = SKIPPED[name]
    found = read(data + GOOD + END)
    assert len(found) == 2
    assert isinstance(found[0], Rejection)
    assert found[0].place.startswith("x.tar: ")
    assert found[0].reason == reason
    assert detail in found[0].detail
    assert found[1] == ("a.json", b"[1]")


BROKEN = {
    "nothing": (b"", "truncated: 0 of 512"),
    "no tar": (b"PK\3\4" * 512, "octal"),
    "wrong checksum": (header(b"a", 0, checksum=b"000777\0 ") + END, "checksum"),
    "signed checksum": (header(b"\xff", 0, checksum=b"%06o\0 " % (sum(header(b"", 0)) % 999)) + END, "checksum"),
    "version 7": (member(b"a", b"", magic=bytes(8)) + END, "neither POSIX nor GNU"),
    "size in Python": (header(b"a", b"0o17\0") + END, "not octal"),
    "negative size": (header(b"a", b"-1\0") + END, "not octal"),
    "size with an underscore": (header(b"a", b"1_0\0") + END, "not octal"),
    "no size": (header(b"a", b"") + END, "not octal"),
    "size in base 256": (header(b"a", b"\x80" + bytes(10) + b"\7") + END, "not octal"),
    "size beyond the file": (header(b"a.json", 0o77777777777) + END, "truncated: the member at byte 0"),
    "cut in a member": (header(b"a.json", 1000) + bytes(600), "truncated"),
    "cut in a header": (GOOD + header(b"a.json", 0)[:100], "truncated: 100 of 512"),
    "cut after a member": (GOOD, "truncated: 0 of 512"),
    "half of the end": (GOOD + bytes(512), "one record of zeros"),
    "two tars in one": (GOOD + END + GOOD + END, "data follows its end"),
    "garbage at the end": (GOOD + END + bytes(5000) + b"\1", "data follows its end"),
    "old sparse file": (header(b"a", 0, b"S") + END, "a sparse file before byte 512"),
    "hard link with data": (member(b"a", b"[1]", b"1") + END, "a hard link"),
    "directory with data": (member(b"a/", b"[1]", b"5") + END, "a directory with data"),
    "contiguous file": (member(b"a", b"[1]", b"7") + END, "type b'7'"),
    "part of a multi-volume tar": (member(b"a", b"[1]", b"M") + END, "type b'M'"),
    "huge PAX header": (header(b"a", 1 << 30, b"x") + END, "truncated"),
    "large PAX header": (member(b"a", bytes(MAX_EXTENDED_BYTES + 1), b"x") + GOOD + END, "over 65536"),
    "large GNU name": (member(b"a", b"n" * (MAX_EXTENDED_BYTES + 1), b"L") + GOOD + END, "over 65536"),
    "large GNU link name": (member(b"a", b"n" * (MAX_EXTENDED_BYTES + 1), b"K") + GOOD + END, "over 65536"),
    "two PAX headers": (pax(mtime="1") + pax(mtime="1") + GOOD + END, "two extended headers"),
    "two GNU names": (member(b"", b"a\0", b"L") * 2 + GOOD + END, "two extended headers"),
    "two names": (pax(path="a") + member(b"", b"b\0", b"L") + GOOD + END, "both a PAX and a GNU name"),
    "PAX header without a member": (GOOD + pax(mtime="1") + END, "belongs to no member"),
    "GNU name without a member": (GOOD + member(b"", b"b\0", b"L") + END, "belongs to no member"),
    "two sizes": (pax(size="5") + GOOD + END, "two sizes"),
    "global name": (pax(b"g", path="a") + GOOD + END, "a global PAX header sets path"),
    "global size": (pax(b"g", size="3") + GOOD + END, "a global PAX header sets size"),
    "global sparse": (pax(b"g", GNU__sparse__major="1") + GOOD + END, "a global PAX header sets GNU.sparse.major"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tar_is_refused_from_there_on(name: str) -> None:
    data, detail = BROKEN[name]
    rejection = refused(data)
    assert (rejection.place, rejection.reason) == ("x.tar", BROKEN_TAR)
    assert detail in rejection.detail
    assert rejection.detail.endswith("the rest of the file cannot be read")


def test_what_comes_before_the_damage_was_read() -> None:
    assert read(GOOD + header(b"b", b"?") + END)[0] == ("a.json", b"[1]")


WRONG_RECORDS = [
    b"9 a=b\n",
    b"6 a=b",
    b"0 a=b\n",
    b"-6 a=b\n",
    b" 6 a=b\n",
    b"06 a=b\n",
    b"6 a=b\nx",
    b"5 abc\n",
    b"4 =\n",
    b"3 \n",
    b"6 a=b\n6 a=c\n",
    b"9999999 a=b\n",
    b"6\ta=b\n",
    bytes(20),
]


@pytest.mark.parametrize("data", WRONG_RECORDS)
def test_pax_records_are_parsed_strictly(data: bytes) -> None:
    assert "PAX header" in refused(member(b"", data, b"x") + GOOD + END).detail


def test_pax_records_may_hold_any_byte() -> None:
    data = pax_record("comment", b"a=b\nc\0\xff") + pax_record("k" * 90, "")
    assert parse_pax(data) == {b"comment": b"a=b\nc\0\xff", b"k" * 90: b""}


def test_a_name_cannot_write_to_the_terminal() -> None:
    (rejection,) = read(header(b"/\x1b[2J\n\xff", 0) + END)
    assert "\\x1b[2J\\n\\udcff" in str(rejection)
    (rejection,) = read(pax(path="/" + "n" * 4000) + header(b"a", 0) + END)
    assert isinstance(rejection, Rejection)
    assert len(str(rejection)) < 300


def with_checksum(block: bytes) -> bytes:
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def test_what_is_accepted_is_what_tarfile_sees_too() -> None:
    """Headers with a right checksum and wrong fields, and extended headers with wrong bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            info = tarfile.TarInfo(f"{number}.json")
            data = listing(list(range(number * 100)))
            info.size, info.mtime = len(data), number + 0.5
            tar.addfile(info, io.BytesIO(data))
    plain = file.getvalue()
    records = [offset for offset in range(0, len(plain), 512) if plain[offset + 257 : offset + 262] == b"ustar"]
    # tarfile wants numbers in the owner and the times too, which nobody needs here.
    looked_at = (*range(100), *range(124, 136), 156, *range(257, 265), *range(345, 500))
    draw = random.Random(0)
    accepted = 0
    for _ in range(3_000):
        offset = draw.choice(records)
        block = bytearray(plain[offset : offset + 512])
        for _ in range(draw.choice((1, 1, 2, 5))):
            at = draw.choice((draw.choice(looked_at), draw.randrange(124, 136), 156, draw.randrange(257, 265)))
            block[at] = draw.choice((draw.randrange(256), *b"0123567xgLKS \0/."))
        data = plain[:offset] + with_checksum(bytes(block)) + plain[offset + 512 :]
        if draw.random() < 0.3:
            at = offset + 512 + draw.randrange(40)
            data = data[:at] + bytes([draw.choice((draw.randrange(256), *b"0123456789= \npathsize"))]) + data[at + 1 :]
        found = read(data)
        if any(isinstance(part, Rejection) for part in found):
            continue
        accepted += 1
        seen = [(name.encode("utf-8", "surrogateescape"), content) for name, content in files_by_tarfile(data)]
        assert [(part[0].encode("utf-8", "surrogateescape"), part[1]) for part in found if part[1] is not None] == seen
    assert 100 < accepted < 2_500


def test_padded_is_whole_records() -> None:
    assert [len(padded(bytes(n))) for n in (0, 1, 512, 513)] == [0, 512, 512, 1024]
