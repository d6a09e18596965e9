"""Small corpora of text for encoding, and what was made of them, read back by NumPy alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pretrain.shards.format import OFFSET, TOKENS, index_name
from pretrain.shards.manifest import Manifest

TEXTS = [
    "def f(x):\n\treturn  x  # <s> </s> <|im_start|>\r\n",
    "e\u0301 עברית 👩‍👩‍👧 漢字\u2028\u00a0",
    "   ",
    "\n",
    *(f"document {i}: " + " ".join(f"word{i * k % 97}" for k in range(i)) for i in range(60)),
]


def write_jsonl(path: Path, texts: Sequence[str] = TEXTS) -> Path:
    """A document a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def task_streams(folder: Path, manifest: Manifest) -> list[list[int]]:
    """The ids of each task in order, read by offset as a reader does."""
    streams: list[list[int]] = []
    for entry in manifest.shards:
        data = (folder / entry.name).read_bytes()
        for row in np.load(folder / index_name(entry.name)):
            payload = data[row[OFFSET] : row[OFFSET] + row[TOKENS] * np.dtype(manifest.dtype).itemsize]
            block = np.frombuffer(payload, manifest.dtype).tolist()
            if streams and streams[-1][-1] == block[0]:
                streams[-1] += block[1:]
            else:
                assert block[0] == manifest.bos_id or not _begins(manifest)
                streams.append(block)
    return streams


def documents_of(folder: Path, manifest: Manifest) -> list[list[int]]:
    """The ids of a stream split after each eos; bos, where there is one, and eos taken off."""
    documents: list[list[int]] = [[]]
    for stream in task_streams(folder, manifest):
        for token in stream:
            documents[-1].append(token)
            if token == manifest.eos_id:
                documents.append([])
        assert documents[-1] == []
    documents.pop()
    begin = int(_begins(manifest))
    assert all(document[0] == manifest.bos_id for document in documents) or not begin
    return [document[begin:-1] for document in documents]


def _begins(manifest: Manifest) -> bool:
    """Whether documents begin with a token."""
    return manifest.bos_id != manifest.eos_id


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by name; fails where there is a folder in it."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
