"""The manifest: what one tokenized corpus holds, and how to know that it is unchanged.

`manifest.json` lies beside the shards (their layout: `pretrain/data/shards.py`) and is written last, so a folder with a
manifest is complete. Nothing in it depends on when, where, or by how many processes the corpus was encoded.
"""

import hashlib
import json
import os
import re
import types
import typing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pretrain.errors import DataError

FORMAT = "pretrain-shards/1"
MANIFEST_NAME = "manifest.json"
LAYOUTS = ("stream",)
LARGEST_U2_VOCAB = 1 << 16
LARGEST_COUNT = 1 << 48  # per shard: keeps every sum and product of counts inside int64

_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardEntry:
    """One tar. `bytes` is its file size, `tokens` its trainable targets, `documents` the document ends in it."""

    name: str
    bytes: int
    sha256: str
    blocks: int
    tokens: int
    documents: int


@dataclass(frozen=True)
class Manifest:
    """One tokenized corpus.

    `tokens` counts the targets that can be trained on: the sum of n-1 over blocks of n tokens, since a block's last
    token is the next block's first. `text_bytes` is the UTF-8 size of the documents (for bits per byte). `skipped` maps
    a reason to the number of documents left out for it.
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
    shuffle_seed: int
    tokens: int
    documents: int
    text_bytes: int
    skipped: dict[str, int]
    shards: tuple[ShardEntry, ...]


def token_dtype(vocab_size: int) -> str:
    """The smallest little-endian unsigned type that holds every id: `<u2` up to 65,536 ids, else `<u4`."""
    return "<u2" if vocab_size <= LARGEST_U2_VOCAB else "<u4"


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
        "shards": [[shard.sha256, shard.blocks, shard.tokens, shard.documents] for shard in manifest.shards],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit `manifest` to `folder` atomically and durably. Raises DataError if it would not be readable again."""
    check_manifest(manifest, where="the new manifest")
    temporary = folder / f"{MANIFEST_NAME}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST_NAME)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, every field checked. Raises DataError for anything that is not a complete manifest."""
    path = folder / MANIFEST_NAME
    if not folder.exists():
        raise DataError(
            f"{folder}: no such folder of shards", hint="check the path; `pretrain tokenizer encode` makes one"
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: a tokenized corpus is a folder, and this is a file")
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no {MANIFEST_NAME} in it; it is written last, so the shards are missing or incomplete",
            hint="run `pretrain tokenizer encode` with this folder as --output (again)",
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON document: {error}", hint="encode the corpus again") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: must hold a JSON object, found {type(document).__name__}")
    # The format comes first: another format may have other fields.
    if document.get("format") != FORMAT:
        raise DataError(
            f"{path}: format={document.get('format')!r} is not known; this version reads {FORMAT!r}",
            hint="encode the corpus again, or install the version that wrote it",
        )
    shards = document.get("shards")
    if isinstance(shards, list):
        document["shards"] = tuple(
            _build(ShardEntry, entry, f"{path}: shards[{position}]") for position, entry in enumerate(shards)
        )
    manifest: Manifest = _build(Manifest, document, str(path))
    check_manifest(manifest, where=str(path))
    return manifest


def _build(kind: Any, document: object, where: str) -> Any:
    """A `kind` from a JSON object with exactly its fields, each of exactly its type."""
    if not isinstance(document, dict):
        raise DataError(f"{where}: must be an object, found {type(document).__name__}")
    expected = typing.get_type_hints(kind)
    problems = [f"{name} is missing" for name in expected if name not in document]
    problems += [f"{name} is not a field of {FORMAT}" for name in document if name not in expected]
    problems += [
        f"{name}={document[name]!r} must be of type {_type_name(expected[name])}"
        for name in expected
        if name in document and not _has_type(document[name], expected[name])
    ]
    if problems:
        raise DataError(f"{where}: {'; '.join(problems)}", hint="encode the corpus again")
    return kind(**document)


def _has_type(value: object, kind: Any) -> bool:
    if isinstance(kind, types.GenericAlias):
        parts = typing.get_args(kind)
        if kind.__origin__ is dict:
            return isinstance(value, dict) and all(
                type(k) is parts[0] and type(v) is parts[1] for k, v in value.items()
            )
        return isinstance(value, tuple) and all(type(item) is parts[0] for item in value)
    return type(value) is kind  # isinstance would take True for an integer


def _type_name(kind: Any) -> str:
    return "list" if getattr(kind, "__origin__", None) is tuple else getattr(kind, "__name__", str(kind))


def check_manifest(manifest: Manifest, *, where: str) -> None:
    """Raise one DataError with every rule that the values of `manifest` break; `where` opens the message."""
    problems = [
        f"{field.name}={getattr(manifest, field.name)} is negative"
        for field in fields(manifest)
        if type(getattr(manifest, field.name)) is int and getattr(manifest, field.name) < 0
    ]
    if manifest.layout not in LAYOUTS:
        problems.append(f"layout={manifest.layout!r} is not one of {', '.join(LAYOUTS)}")
    if manifest.dtype not in ("<u2", "<u4"):
        problems.append(f"dtype={manifest.dtype!r} is not '<u2' or '<u4'")
    elif manifest.dtype == "<u2" and manifest.vocab_size > LARGEST_U2_VOCAB:
        problems.append(f"dtype='<u2' cannot hold vocab_size={manifest.vocab_size}")
    if manifest.block_tokens < 1:
        problems.append(f"block_tokens={manifest.block_tokens} is less than 1")
    for name in ("bos_id", "eos_id"):
        if getattr(manifest, name) >= manifest.vocab_size:
            problems.append(f"{name}={getattr(manifest, name)} is not below vocab_size={manifest.vocab_size}")
    if not _SHA256.fullmatch(manifest.tokenizer_sha256):
        problems.append(f"tokenizer_sha256={manifest.tokenizer_sha256!r} is not 64 lower-case hexadecimal digits")
    problems += [f"skipped[{reason!r}]={count} is negative" for reason, count in manifest.skipped.items() if count < 0]
    problems += _shard_problems(manifest.shards)
    for name in ("tokens", "documents"):
        total = sum(getattr(shard, name) for shard in manifest.shards)
        if total != getattr(manifest, name):
            problems.append(f"{name}={getattr(manifest, name)} but its shards hold {total}")
    if problems:
        raise DataError(f"{where}: {'; '.join(problems)}", hint="encode the corpus again")


def _shard_problems(shards: tuple[ShardEntry, ...]) -> list[str]:
    problems = [] if shards else ["shards is empty"]
    seen: set[str] = set()
    for shard in shards:
        # The name is joined to a folder and opened: nothing but a plain file name in that folder may pass.
        if not _SHARD_NAME.fullmatch(shard.name):
            problems.append(f"shard name {shard.name!r} is not a plain file name that ends in .tar")
        if shard.name in seen:
            problems.append(f"shard {shard.name!r} is listed twice")
        seen.add(shard.name)
        if not _SHA256.fullmatch(shard.sha256):
            problems.append(f"{shard.name}: sha256={shard.sha256!r} is not 64 lower-case hexadecimal digits")
        for name, least in (("bytes", 1), ("blocks", 1), ("tokens", 1), ("documents", 0)):
            if not least <= getattr(shard, name) < LARGEST_COUNT:
                problems.append(f"{shard.name}: {name}={getattr(shard, name)} is not between {least} and 2^48")
    return problems
