"""The memory of an encoding process does not grow with files, documents or tasks."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.shards.manifest_file import read_manifest
from tests.support.processes import ENVIRONMENT
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401

LIMIT_BYTES = 1_000_000_000
# Words that come again and again: 5 GB of them are 20 MB of gzip.
LINE = json.dumps({"text": "the same words again and again, " * 30}) + "\n"


def write_repetitive(path: Path, size: int) -> int:
    """A jsonl.gz that holds about `size` bytes; returns the number of its documents."""
    chunk = (LINE * 1_000).encode()
    chunks = max(1, size // len(chunk))
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(chunks):
            file.write(chunk)
    return 1_000 * chunks


# From a process of its own: at its birth a process is as large as the one that it is forked from, and Linux counts that.
WATCH = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, "-m", "pretrain.cli", *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
os._exit(os.waitstatus_to_exitcode(status))
"""


def peak_bytes(arguments: list[str]) -> int:
    """Peak resident memory of the largest process of a `pretrain` command."""
    command = [sys.executable, "-u", "-c", WATCH, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout) * 1024


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [300_000_000, pytest.param(5_000_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [[], ["--deduplicate"]], ids=["plain", "deduplicate"])
def test_a_file_that_unpacks_to_more_than_the_memory_is_encoded(
    sentencepiece_model: Path, tmp_path: Path, size: int, options: list[str]
) -> None:
    documents = [write_repetitive(tmp_path / f"{part}.jsonl.gz", size // 2) for part in "ab"]
    inputs = ["--input", str(tmp_path / "a.jsonl.gz"), str(tmp_path / "b.jsonl.gz")]
    arguments = ["tokenizer", "encode", "--tokenizer", str(sentencepiece_model), *inputs, "--workers", "2", *options]
    assert peak_bytes([*arguments, "--output", str(tmp_path / "out")]) < LIMIT_BYTES
    manifest = read_manifest(tmp_path / "out")
    if options:
        assert manifest.documents == 1 and manifest.skipped == {"duplicate": sum(documents) - 1}
    else:
        assert manifest.documents == sum(documents) and manifest.skipped == {}
