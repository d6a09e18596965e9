"""The manifest: what one tokenized corpus holds, and how to know that it is unchanged.

    manifest.json   small, for people too: everything but what is said of each shard; its last field is a checksum
      → shards.npy  one row a shard, with the sha256 that manifest.json names       -> pretrain/shards/table.py

Both lie beside the shards (their layout: `pretrain/shards/format.py`). `manifest.json` is written last, so a folder with one
is complete. Nothing in them depends on when, where, or by how many processes the corpus was encoded. A reader computes
where sequences lie from these numbers, and a flipped digit would move them all without a sound: hence the checksums.
"""

import hashlib
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import DataError
from pretrain.shards.manifest_rules import (
    LARGEST_VOCAB,
    LAYOUTS,
    check_manifest,
    check_table_file,
    raise_problems,
    show,
)
from pretrain.shards.table import TABLE_NAME, ShardTable, parse_table, table_bytes, table_file
from pretrain.storage.files import publish_file
from pretrain.storage.store import LocalStore, Store

FORMAT = "pretrain-shards/2"
MANIFEST_NAME = "manifest.json"
STREAM, PACKED = LAYOUTS
LARGEST_MANIFEST = 1 << 20  # bytes; without reasons for left out documents it has some 800


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One tokenized corpus.

    `tokens` counts the targets that can be trained on. Layout "stream": each id but the first, which is the sum over the
    shards, since a block's last id is the next block's first. Layout "packed": bins of `packed_seq_len` ids, filled up
    with `pad_id`, and one more `pad_id` after the last bin; `padding_tokens` of all ids are padding, and each id that is
    neither padding nor the first of its bin is a target. `documents_cut` of the documents were too long for one bin. In
    a stream these are 0, and `pad_id` is -1.

    A document is bos + ids + eos. Where `bos_id` is `eos_id`, nothing begins one: it is ids + eos.

    `sentencepiece_version` is of what made the ids, with its name where that was not SentencePiece ("tokenizers 0.22.1").
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
        """Pairs of neighbouring ids on disk: whole sequences are cut out of these. `tokens`, and padding if packed."""
        return int(self.shards.tokens.sum())


def token_dtype(vocab_size: int) -> str:
    """The smallest little-endian unsigned type that holds every id: `<u2` up to 65,536 ids, else `<u4`."""
    return "<u2" if vocab_size <= LARGEST_VOCAB["<u2"] else "<u4"


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 (hex) over what decides the tokens and their order: equal fingerprints, equal streams."""
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
    return _digest(decisive)


def _digest(document: dict[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON: sorted keys, no spaces, ASCII."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit `manifest` to `folder` durably: the table, then `manifest.json`, each atomically.

    Raises DataError if it would not be readable again.
    """
    check_manifest(manifest, where="the new manifest")
    for name, data in ((TABLE_NAME, table_file(manifest.shards)), (MANIFEST_NAME, manifest_text(manifest).encode())):
        # Durable before the next: a manifest without its table must not survive a power cut.
        publish_file(folder / name, data)


def manifest_text(manifest: Manifest) -> str:
    """The JSON document: one field a line, and the checksum last."""
    table = {
        "file": TABLE_NAME,
        "rows": len(manifest.shards),
        "sha256": hashlib.sha256(table_file(manifest.shards)).hexdigest(),
    }
    document = {**vars(manifest), "shards": table}
    document["checksum"] = _digest(document)
    return (
        "{\n " + ",\n ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items()) + "\n}\n"
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder: see `load_manifest`."""
    return load_manifest(LocalStore(folder))


def load_manifest(store: Store) -> Manifest:
    """The manifest of a corpus, wherever it lies, with every value checked.

    Raises DataError for anything that is not complete and unchanged. Nothing is allocated by a size that a file claims.
    """
    if isinstance(store, LocalStore):
        _refuse_incomplete(store.folder)
    where, table_where = f"{store.address}/{MANIFEST_NAME}", f"{store.address}/{TABLE_NAME}"
    document = store.read_file(MANIFEST_NAME, LARGEST_MANIFEST, lambda data: _parse_document(data, where))
    rows, sha256 = document["shards"]["rows"], document["shards"]["sha256"]
    shards = store.read_file(TABLE_NAME, table_bytes(rows), lambda data: parse_table(data, rows, sha256, table_where))
    manifest = Manifest(**{**document, "shards": shards})
    check_manifest(manifest, where=where)
    return manifest


def _refuse_incomplete(folder: Path) -> None:
    if not folder.exists():
        raise DataError(
            f"{folder}: no such folder of shards", hint="check the path; `pretrain tokenizer encode` makes one"
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: a tokenized corpus is a folder, and this is a file")
    if not (folder / MANIFEST_NAME).exists():
        raise DataError(
            f"{folder}: no {MANIFEST_NAME} in it; it is written last, so the shards are missing or incomplete",
            hint="run `pretrain tokenizer encode` with this folder as --output (again)",
        )


def _parse_document(data: bytes, where: str) -> dict[str, Any]:
    """The fields of `Manifest`, their types and the checksum checked; `shards` is what is said of the table's file."""
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_int=_integer, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON document: {error}", hint="encode the corpus again") from None
    if not isinstance(document, dict):
        raise DataError(f"{where}: must hold a JSON object, found {type(document).__name__}")
    # The format comes first: another format may have other fields.
    if document.get("format") != FORMAT:
        raise DataError(
            f"{where}: format={show(document.get('format'))} is not known; this version reads {FORMAT!r}",
            hint="encode the corpus again, or install the version that wrote it",
        )
    checksum = document.pop("checksum", None)
    if checksum != _digest(document):
        raise DataError(
            f"{where}: damaged: its values do not give its checksum={show(checksum)}",
            hint="copy the folder again, or encode the corpus again; a manifest is not to be edited",
        )
    _refuse_wrong_fields({**typing.get_type_hints(Manifest), "shards": dict}, document, where)
    _refuse_wrong_fields({"file": str, "rows": int, "sha256": str}, document["shards"], f"{where}: shards")
    check_table_file(**document["shards"], where=where)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name is given twice in one object")
    return document


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"{digits[:20]}… is an integer of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _refuse_wrong_fields(expected: dict[str, Any], document: dict[str, Any], where: str) -> None:
    """Raise DataError unless a JSON object has exactly these fields, each of exactly its type."""
    problems = [f"{name} is missing" for name in expected if name not in document]
    problems += [f"{show(name)} is not a field of {FORMAT}" for name in document if name not in expected]
    for name in [name for name in expected if name in document]:
        value, wanted = document[name], typing.get_origin(expected[name]) or expected[name]
        counts = value.values() if isinstance(value, dict) and typing.get_args(expected[name]) else ()
        if type(value) is not wanted or any(type(count) is not int for count in counts):  # isinstance: True is an int
            problems.append(f"{name}={show(value)} must be of type {wanted.__name__}")
    raise_problems(problems, where)
