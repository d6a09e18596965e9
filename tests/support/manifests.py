"""A manifest of each layout, and folders that hold one."""

import dataclasses
import json
from pathlib import Path

from pretrain.shards import manifest as module
from pretrain.shards.manifest import Manifest
from pretrain.shards.manifest_file import manifest_text, read_manifest
from pretrain.shards.table import ShardEntry, ShardTable, table_file

ENTRY = ShardEntry(name="shard-000000.tar", bytes=10_240, sha256="a" * 64, blocks=2, tokens=30, documents=4)
MANIFEST = Manifest(
    format="pretrain-shards/2",
    dtype="<u2",
    vocab_size=1_000,
    bos_id=1,
    eos_id=2,
    tokenizer_sha256="b" * 64,
    sentencepiece_version="0.2.3",
    block_tokens=16,
    layout="stream",
    shuffle_seed=0,
    tokens=30,
    documents=4,
    text_bytes=100,
    skipped={"empty": 2},
    shards=ShardTable.of([ENTRY]),
)
# 2 shards of 2 bins of 8 ids, and one more id; 5 of all ids are padding, and 4 the first of their bin.
BINS = dataclasses.replace(ENTRY, blocks=1, tokens=16)
PACKED = dataclasses.replace(
    MANIFEST,
    layout="packed",
    packed_seq_len=8,
    pad_id=3,
    padding_tokens=5,
    documents_cut=1,
    tokens=33 - 5 - 4,
    documents=8,
    shards=ShardTable.of([BINS, dataclasses.replace(BINS, name="shard-000001.tar")]),
)


def read_text(folder: Path, text: str | bytes, table: bytes | None = None) -> Manifest:
    """What a folder with this manifest.json and this shards.npy (by default that of MANIFEST) holds."""
    (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "shards.npy").write_bytes(table_file(MANIFEST.shards) if table is None else table)
    return read_manifest(folder)


def sealed(document: dict[str, object]) -> bytes:
    """As JSON with the checksum that belongs to it, so that its values alone decide."""
    return json.dumps({**document, "checksum": module.json_digest(document)}).encode()


def changed(base: Manifest = MANIFEST, **changes: object) -> dict[str, object]:
    document = json.loads(manifest_text(base))
    del document["checksum"]
    return {**document, **changes}
