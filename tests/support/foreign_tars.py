"""Tars of tokens, as other tools write them, and their rewriting into small shards."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.shards.manifest_file import read_manifest
from tests.support.tars import (
    END,
    files_by_tarfile,
    ids_by_other_readers,
    listing,
    member,
)
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tokenizer.encoding.foreign.framing import FramingOptions
from tokenizer.encoding.foreign.rewrite import RewriteResult, index_foreign

EOS, BOS, PAD, VOCAB = 2, 1, 3, 1_000
READING = FramingOptions(vocab_size=VOCAB, eos_id=EOS)
DOCUMENTS = [[10, 11, 12], [20], list(range(100, 400)), [30, 31, EOS]]


def index(
    sources: Sequence[Path | str] | Path, output: Path, reading: FramingOptions = READING, **options: Any
) -> RewriteResult:
    names = [str(sources)] if isinstance(sources, Path) else [str(source) for source in sources]
    return index_foreign(names, output, reading, **{"block_tokens": 64, "shard_bytes": 512, **options})


def stream_of(folder: Path) -> list[int]:
    """All ids of a corpus, as NumPy and tarfile see them: the last id of a block is the first of the next."""
    stream: list[int] = []
    for entry in read_manifest(folder).shards:
        for name, data in files_by_tarfile((folder / entry.name).read_bytes()):
            if name.endswith(".tok.npy"):
                block = ids_by_other_readers(name, data)
                assert stream[-1:] in ([], block[:1])
                stream += block[1:] if stream else block
    return stream


def framed(documents: Sequence[Sequence[int]]) -> list[int]:
    return [token for ids in documents for token in ([*ids] if ids[-1] == EOS else [*ids, EOS])]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(member(name.encode(), data) for name, data in members.items()) + END)
    return path


def good_tar(path: Path, documents: Sequence[Sequence[int]] = DOCUMENTS) -> Path:
    return write_tar(path, {f"{number}.json": listing([*ids]) for number, ids in enumerate(documents)})


WRITERS: dict[str, Callable[[list[int]], object]] = {
    "npy": lambda ids: np.array(ids, np.uint16),
    "tok.npy": lambda ids: np.array(ids),
    "npy.gz": lambda ids: np.array(ids, np.int32),
    "json": lambda ids: ids,
    "input.json": lambda ids: {"input_ids": ids, "url": "https://example.org", "score": 0.5},
    "json.gz": lambda ids: json.dumps(ids),  # as open_lm writes it
}
