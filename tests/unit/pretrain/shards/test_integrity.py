"""Damage of any byte of a shard or its index is found and named."""

import io
import json
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from pretrain.cli.main import cli
from pretrain.config.schema import SourceConfig
from pretrain.data.source import Source
from pretrain.errors import DataError
from pretrain.shards import integrity as verify
from pretrain.shards.integrity import verify_shards
from pretrain.shards.manifest_file import load_manifest, read_manifest, write_manifest
from pretrain.shards.table import ShardTable
from pretrain.storage.store import open_store
from tests.support.shards import write_corpus
from tests.support.stores import memory_address_fixture as memory_address_fixture
from tests.support.stores import no_waits_fixture as no_waits_fixture
from tests.support.stores import upload


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "shards", 1_000)
    return tmp_path / "shards"


def problems(folder: Path | str) -> list[str]:
    store = open_store(str(folder))
    return [problem for _, found in verify_shards(store, load_manifest(store), workers=2) for problem in found]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["data", *arguments])


def test_whole_shards_have_no_problem(shards: Path) -> None:
    assert len(read_manifest(shards).shards) > 2
    assert problems(shards) == []


@pytest.mark.parametrize("place", [10, 600, -600])
def test_a_flipped_byte_anywhere_in_a_shard_is_found(shards: Path, place: int) -> None:
    path = shards / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    assert any("shard-000001.tar: its sha256" in problem for problem in problems(shards))


def test_a_damaged_payload_names_its_block(shards: Path) -> None:
    path = shards / "shard-000000.tar"
    index = np.load(path.with_name("shard-000000.idx.npy"))
    content = bytearray(path.read_bytes())
    content[index[1, 0] + 1] = 0xFF
    path.write_bytes(content)
    found = problems(shards)
    named = f"block 1 at offset {index[1, 0]}"
    assert any(f"{named}: its crc32" in problem for problem in found)
    assert any(f"{named}: holds id 65" in problem for problem in found)


@pytest.mark.parametrize("damage", ["missing", "longer", "index"])
def test_what_is_missing_or_has_another_size_is_named(shards: Path, damage: str) -> None:
    path = shards / "shard-000002.tar"
    if damage == "missing":
        path.unlink()
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.with_name("shard-000002.idx.npy").unlink()
    found = problems(shards)
    assert len(found) == 1
    assert "shard-000002" in found[0]


def members(path: Path) -> list[tuple[str, int, int]]:
    """Name, position of the header, and position of the data of each member."""
    with tarfile.open(path) as tar:
        return [(member.name, member.offset, member.offset_data) for member in tar]


def change_header(path: Path, member: int, start: int, value: bytes) -> None:
    """Overwrite a field of a member's tar header, and correct its checksum."""
    content = bytearray(path.read_bytes())
    place = members(path)[member][1]
    content[place + start : place + start + len(value)] = value
    content[place + 148 : place + 156] = b" " * 8
    content[place + 148 : place + 156] = b"%06o\0 " % sum(content[place : place + 512])
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("member", "start", "value", "problem"),
    [
        (2, 156, b"2", "member '000001000001.doc.npy' is not a plain file"),
        (3, 156, b"S", "member '000001000001.tok.npy' is not a plain file"),
        (3, 156, b"x", "is not a plain file"),
        (2, 345, b"/etc", "is not a plain file"),
        (3, 124, b"99999999999\0", "is not a plain file"),
        (2, 124, b"00000000201\0", "which do not fit"),
        (3, 124, b"00000001000\0", "does not hold 65 tokens where the index says"),
        (3, 0, b"000000000001.doc.npy", "in the place of one named .tok.npy"),
        (2, 0, b"000000000009", "its members have two keys, '000000000009' and '000001000001'"),
        (3, 0, b"../../../../etc/x.py", "in the place of one named .tok.npy"),
        (2, 257, b"nostar", "no tar header in the place of that of its .doc.npy"),
    ],
)
def test_a_member_that_is_not_what_the_index_says_is_named(
    shards: Path, member: int, start: int, value: bytes, problem: str
) -> None:
    path = shards / "shard-000001.tar"
    change_header(path, member, start, value)
    found = problems(shards)
    assert any("block 1 at offset" in line and problem in line for line in found), found
    assert any("its sha256" in line for line in found)
    assert len(found) == 2


def test_a_header_whose_checksum_is_wrong_is_named(shards: Path) -> None:
    path = shards / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[members(path)[4][1] + 110] ^= 1  # its uid, which nothing else looks at
    path.write_bytes(content)
    assert any("block 2" in line and "checksum of the tar header of its .doc.npy" in line for line in problems(shards))


def test_an_index_that_is_a_token_off_is_named_though_its_crc32_fits(shards: Path) -> None:
    path = shards / "shard-000005.idx.npy"  # of one short block, after which there is padding
    index, content = np.load(path), path.with_name("shard-000005.tar").read_bytes()
    index[0, 0] += 2
    index[0, 3] = zlib.crc32(content[index[0, 0] : index[0, 0] + 2 * index[0, 1]])
    np.save(path, index)
    (problem,) = problems(shards)
    assert "block 0 at offset" in problem and "tokens where the index says" in problem


def test_keys_come_in_order(shards: Path) -> None:
    path = shards / "shard-000001.tar"
    for member in (2, 3):
        change_header(path, member, 0, b"000001000000")
    change_header(path, 0, 0, b"000001000000")
    change_header(path, 1, 0, b"000001000000")
    assert any("its key '000001000000' does not come after" in line for line in problems(shards))


@pytest.mark.parametrize("ends", [[0], [66], [-1], [1 << 30]])
def test_document_ends_that_are_no_positions_are_named(shards: Path, ends: list[int]) -> None:
    path = shards / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    name, _, data = members(path)[0]
    assert (name, content[data + 128 : data + 132]) == ("000000000000.doc.npy", np.array([50], "<i4").tobytes())
    content[data + 128 : data + 132] = np.array(ends, "<i4").tobytes()
    path.write_bytes(content)
    assert any("block 0" in line and "increasing positions from 1 to 65" in line for line in problems(shards))


def test_what_stands_between_and_after_the_blocks_is_named(shards: Path) -> None:
    path = shards / "shard-000000.tar"
    whole = path.read_bytes()
    second = members(path)[2][1]
    for place, problem in ((second - 1, "the padding before it is not empty"), (-1, "data after the last block")):
        content = bytearray(whole)
        content[place] = 1
        path.write_bytes(content)
        assert any(problem in line for line in problems(shards))


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_a_flipped_bit_anywhere_is_found(shards: Path, memory_address: str, no_waits: None, kind: str) -> None:
    rng = np.random.default_rng(0)
    upload(shards, memory_address)
    files = fsspec.filesystem("memory")
    for path in sorted(shards.iterdir()):
        whole = path.read_bytes()
        for place in rng.integers(0, len(whole), 25).tolist():
            content = bytearray(whole)
            content[place] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(content)
            files.pipe_file(f"{memory_address}/{path.name}", bytes(content))
            result = invoke("verify", str(shards) if kind == "folder" else memory_address)
            if path.name in ("manifest.json", "shards.npy"):
                assert isinstance(result.exception, DataError), place
            elif path.suffix == ".npy":
                same = _is_equal(_load(content), np.load(io.BytesIO(whole)))
                assert result.exit_code == (0 if same else 1), (path, place, result.output)
            else:
                assert result.exit_code == 1, (path, place)
                assert path.name in result.stdout
            path.write_bytes(whole)
            files.pipe_file(f"{memory_address}/{path.name}", whole)


def _is_equal(found: np.ndarray | None, index: np.ndarray) -> bool:
    return found is not None and found.dtype == index.dtype and np.array_equal(found, index)


def _load(content: bytes) -> np.ndarray | None:
    try:
        return np.load(io.BytesIO(content))
    except Exception:
        return None


def test_a_shard_is_read_in_pieces(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = problems(shards)
    monkeypatch.setattr(verify, "PIECE", 48)
    assert problems(shards) == whole == []
    path = shards / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[members(path)[3][2] + 140] ^= 1
    path.write_bytes(content)
    assert any("block 1 at offset" in line and "its crc32" in line for line in problems(shards))


def test_a_claimed_size_is_never_allocated(shards: Path) -> None:
    """An index and a manifest that agree on a block of 2^40 tokens in a shard that says it is as large."""
    manifest = read_manifest(shards)
    tokens = 1 << 40
    with (shards / "shard-000000.tar").open("r+b") as file:
        file.truncate(4 * tokens)  # sparse
    entry = replace(manifest.shards[0], bytes=4 * tokens, blocks=1, tokens=tokens - 1, documents=0)
    np.save(shards / "shard-000000.idx.npy", np.array([[2 * tokens - 512, tokens, 0, 1]]))
    write_manifest(
        shards, replace(manifest, shards=ShardTable.of([entry]), tokens=tokens - 1, documents=0, block_tokens=tokens)
    )
    program = (
        "import resource, sys; from pretrain.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "from pretrain.shards.manifest_file import load_manifest; from pretrain.storage.store import open_store\n"
        "from pretrain.shards.integrity import _Reader, _block_problems; from pretrain.shards.format import read_index\n"
        "store = open_store(sys.argv[1]); manifest = load_manifest(store)\n"
        "index = read_index(store, manifest.shards[0], manifest.dtype, block_tokens=manifest.block_tokens)\n"
        "shard = _Reader(store, manifest.shards[0])\n"
        "print(next(_block_problems(shard, index, manifest)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, shards], capture_output=True, text=True, timeout=60)
    assert "more than headers and document ends can take" in ended.stdout, ended.stderr


def test_the_command_ends_with_1_and_lists_the_damage(shards: Path) -> None:
    assert invoke("verify", str(shards)).exit_code == 0
    (shards / "shard-000000.tar").unlink()
    result = invoke("verify", str(shards))
    assert result.exit_code == 1
    assert "shard-000000.tar: no such file" in result.stdout


def test_the_commands_take_addresses(shards: Path, memory_address: str) -> None:
    upload(shards, memory_address)
    assert invoke("info", memory_address).stdout == invoke("info", str(shards)).stdout != ""
    result = invoke("verify", memory_address)
    assert (result.exit_code, result.stdout) == (0, f"{memory_address}: 6 shards intact\n")
    fsspec.filesystem("memory").rm(f"{memory_address}/shard-000002.tar")
    result = invoke("verify", memory_address)
    assert result.exit_code == 1
    assert "shard-000002.tar: FileNotFoundError" in result.stdout


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"{}", b"[" * 100_000])
@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_broken_manifest_is_one_message(shards: Path, command: str, content: bytes) -> None:
    (shards / "manifest.json").write_bytes(content)
    ended = subprocess.run(
        [sys.executable, "-m", "pretrain.cli", "data", command, shards], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "manifest.json" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_sequence_is_where_its_place_says(shards: Path) -> None:
    source = Source("a", SourceConfig(str(shards)), 16)
    tokens = np.empty((1, 17), np.int64)
    for sequence in range(len(source)):
        name, block, row = source.place(sequence)
        index = np.load(shards / name.replace(".tar", ".idx.npy"))
        raw = (shards / name).read_bytes()[index[block, 0] :]
        source.read(np.array([sequence]), tokens)
        assert (np.frombuffer(raw, "<u2", 17, row * 32) == tokens).all()


def test_the_order_is_printed_a_line_a_sample(shards: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    sections = {
        "model": {"vocab_size": 1000, "max_seq_len": 16},
        "data": {"seq_len": 16, "train": {"web": {"path": str(shards)}}},
    }
    config.write_text(json.dumps(sections))

    def lines(start: int, count: int) -> list[str]:
        arguments = ["data", "order", str(config), "--start", str(start), "--count", str(count)]
        return CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout.splitlines()

    whole = lines(0, 20)
    assert lines(7, 5) == whole[7:12]
    g, source, shard, block, row, crc = whole[0].split(" ")
    assert (g, source, shard[:6], len(crc)) == ("0", "web", "shard-", 8)
    assert int(block) >= 0 and 0 <= int(row) < 4
