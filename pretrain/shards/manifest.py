"""The manifest of a tokenized corpus: its contents and checksums.

    manifest.json   small and readable: everything but the rows of shards; its last field is a checksum
      → shards.npy  one row a shard, with the sha256 that manifest.json names       -> pretrain/shards/table.py

Both lie beside the shards (format: `pretrain/shards/format.py`). `manifest.json` is written last, so a folder with one is
complete. Nothing in them depends on when, where, or by how many processes the corpus was encoded. A reader computes the
location of sequences from these numbers, and a flipped digit would move them all silently: hence the checksums.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.shards.table import ShardTable

FORMAT = "pretrain-shards/2"
MANIFEST_NAME = "manifest.json"
STREAM, PACKED = LAYOUTS = ("stream", "packed")
LARGEST_VOCAB = {"<u2": 1 << 16, "<u4": 1 << 32}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One tokenized corpus.

    `tokens` counts the targets that can be trained on. Layout "stream": each id but the first, which is the sum over the
    shards, since a block's last id is the next block's first. Layout "packed": bins of `packed_seq_len` ids, filled up
    with `pad_id`, and one more `pad_id` after the last bin; `padding_tokens` of all ids are padding, and each id that is
    neither padding nor the first of its bin is a target. `documents_cut` of the documents were too long for one bin. In
    a stream these are 0, and `pad_id` is -1.

    A document is bos + ids + eos; if `bos_id` equals `eos_id`, it is ids + eos.

    `sentencepiece_version` is the version of the encoder, with its name if that was not SentencePiece ("tokenizers 0.22.1").
    `text_bytes` is the UTF-8 size of the documents (for bits per byte). `skipped` maps a reason to the number of
    documents left out for it.
    """

    format: str
    dtype: str
    vocab_size: int
    bos_id: int
    eos_id: int
    tokenizer_sha256: str
    sentencepiece_version: str
    block_tokens: int
    layout: str
    packed_seq_len: int = 0
    pad_id: int = -1
    shuffle_seed: int
    tokens: int
    padding_tokens: int = 0
    documents: int
    documents_cut: int = 0
    text_bytes: int
    skipped: dict[str, int]
    shards: ShardTable

    @property
    def stored_targets(self) -> int:
        """Pairs of neighbouring ids on disk, from which sequences are cut: `tokens`, plus padding if packed."""
        return int(self.shards.tokens.sum())


def token_dtype(vocab_size: int) -> str:
    """The smallest little-endian unsigned type that holds every id: `<u2` up to 65,536 ids, else `<u4`."""
    return "<u2" if vocab_size <= LARGEST_VOCAB["<u2"] else "<u4"


def last_blocks(manifest: Manifest) -> NDArray[np.int64]:
    """Targets in the last block of each shard."""
    # A manifest whose shards' tokens do not match their blocks was refused on load.
    last: NDArray[np.int64] = manifest.shards.tokens - (manifest.shards.blocks - 1) * manifest.block_tokens
    return last


def unread_targets(manifest: Manifest, seq_len: int) -> int:
    """Targets that training at `seq_len` does not read: what is left of each shard's last block after whole sequences.

    `seq_len` must divide the blocks.
    """
    return int((last_blocks(manifest) % seq_len).sum())


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 (hex) over the fields that determine the tokens and their order."""
    decisive = {
        "format": manifest.format,
        "dtype": manifest.dtype,
        "vocab_size": manifest.vocab_size,
        "bos_id": manifest.bos_id,
        "eos_id": manifest.eos_id,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "block_tokens": manifest.block_tokens,
        "layout": manifest.layout,
        "packed_seq_len": manifest.packed_seq_len,
        "pad_id": manifest.pad_id,
        "padding_tokens": manifest.padding_tokens,
        "shards": manifest.shards.digest,
    }
    return json_digest(decisive)


def json_digest(document: dict[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON: sorted keys, no spaces, ASCII."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
