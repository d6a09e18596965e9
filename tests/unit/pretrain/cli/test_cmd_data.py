"""`pretrain data info`: what a run leaves unread, and the tokenizer by its kind."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pretrain.cli.cmd_data import info
from pretrain.errors import DataError
from pretrain.shards.manifest_file import read_manifest, write_manifest
from tests.support.shards import write_corpus


def rows(*arguments: object) -> list[str]:
    done = CliRunner().invoke(info, [str(part) for part in arguments], catch_exceptions=False)
    return [" ".join(line.split()) for line in done.output.splitlines()]


def test_the_targets_that_a_run_leaves_unread_are_counted(tmp_path: Path) -> None:
    write_corpus(tmp_path, 64 * 4 + 14, blocks_per_shard=2)  # three shards; the last has 13 targets
    assert "unread 1.86% at seq_len 8: 5 targets, at the ends of 3 shards" in rows(tmp_path, "--seq-len", 8)
    assert "unread 0.00% at seq_len 1: 0 targets" in rows(tmp_path, "--seq-len", 1)
    assert not any("unread" in row for row in rows(tmp_path))  # no run can read these blocks at 2,048
    with pytest.raises(DataError, match="--seq-len 48 does not divide the blocks of 64 tokens"):
        rows(tmp_path, "--seq-len", 48)


@pytest.mark.parametrize(
    ("version", "shown"),
    [("0.2.1", "…, SentencePiece 0.2.1"), ("tokenizers 0.22.1", "…, tokenizers 0.22.1"), ("unknown", "…")],
)
def test_an_encoder_that_is_not_known_is_not_called_sentencepiece(tmp_path: Path, version: str, shown: str) -> None:
    write_corpus(tmp_path, 100)
    write_manifest(tmp_path, replace(read_manifest(tmp_path), sentencepiece_version=version))
    (row,) = (row for row in rows(tmp_path) if row.startswith("tokenizer"))
    assert row.endswith(shown)
