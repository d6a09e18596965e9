"""Damage of any byte of a shard or its index is found and named."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pretrain.cli import cli
from pretrain.config.schema import SourceConfig
from pretrain.data.manifest import read_manifest
from pretrain.data.source import Source
from pretrain.data.verify import verify_folder
from tests.support.shards import write_corpus


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "shards", 1_000)
    return tmp_path / "shards"


def problems(folder: Path) -> list[str]:
    return [problem for _, found in verify_folder(folder, workers=2) for problem in found]


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
    assert any("block 1: its crc32" in problem for problem in found)
    assert any("block 1: holds id 65" in problem for problem in found)


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


def test_the_command_ends_with_1_and_lists_the_damage(shards: Path) -> None:
    assert CliRunner().invoke(cli, ["data", "verify", str(shards)]).exit_code == 0
    (shards / "shard-000000.tar").unlink()
    result = CliRunner().invoke(cli, ["data", "verify", str(shards)])
    assert result.exit_code == 1
    assert "shard-000000.tar: missing" in result.stdout


def test_a_sequence_is_where_its_place_says(shards: Path) -> None:
    source = Source("a", SourceConfig(str(shards)), 16)
    tokens = np.empty(17, np.int64)
    for sequence in range(len(source)):
        name, block, row = source.place(sequence)
        index = np.load(shards / name.replace(".tar", ".idx.npy"))
        raw = (shards / name).read_bytes()[index[block, 0] :]
        source.read(sequence, tokens)
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
