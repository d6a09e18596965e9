"""Rules for the values of a manifest, beyond their types (`pretrain/shards/manifest.py` describes the fields).

A manifest may come from anywhere, and readers compute with its numbers. Rules for shards are vectorized over columns: there
may be tens of thousands of rows.
"""

import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np

from pretrain.errors import DataError
from pretrain.shards.manifest import LARGEST_VOCAB, LAYOUTS, PACKED, STREAM, Manifest
from pretrain.shards.table import MOST_SHARDS, TABLE_NAME, shard_name

LARGEST_COUNT = 1 << 43  # of a shard: the sum over MOST_SHARDS stays inside int64
LARGEST_INTEGER = 1 << 62
_SHOWN_PROBLEMS = 20

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_manifest(manifest: Manifest, *, where: str) -> None:
    """Raise one DataError with all rules that `manifest` breaks; `where` opens the message."""
    problems = []
    for field in fields(manifest):
        value, least = getattr(manifest, field.name), -1 if field.name == "pad_id" else 0
        if type(value) is int and not least <= value < LARGEST_INTEGER:
            problems.append(f"{field.name}={value} is {'negative' if value < 0 else 'not below 2^62'}")
    if manifest.dtype not in LARGEST_VOCAB:
        problems.append(f"dtype={show(manifest.dtype)} is not '<u2' or '<u4'")
    elif manifest.vocab_size > LARGEST_VOCAB[manifest.dtype]:
        problems.append(f"dtype={manifest.dtype!r} cannot hold vocab_size={manifest.vocab_size}")
    if manifest.block_tokens < 1:
        problems.append(f"block_tokens={manifest.block_tokens} is less than 1")
    for name in ("bos_id", "eos_id", "pad_id"):
        if getattr(manifest, name) >= manifest.vocab_size:
            problems.append(f"{name}={getattr(manifest, name)} is not below vocab_size={manifest.vocab_size}")
    if not _SHA256.fullmatch(manifest.tokenizer_sha256):
        problems.append(f"tokenizer_sha256={show(manifest.tokenizer_sha256)} is not 64 lower-case hexadecimal digits")
    for reason, count in manifest.skipped.items():
        if not 0 <= count < LARGEST_INTEGER:
            problems.append(f"skipped[{show(reason)}]={count} is {'negative' if count < 0 else 'not below 2^62'}")
    problems += _shard_problems(manifest) or _total_problems(manifest)
    raise_problems(problems, where)


def check_table_file(*, file: str, rows: int, sha256: str, where: str) -> None:
    """Raise DataError unless the reference to the table is valid: the size of the read depends on it."""
    problems = []
    if file != TABLE_NAME:
        problems.append(f"shards: file={show(file)} must be {TABLE_NAME!r}")
    if not 0 <= rows <= MOST_SHARDS:
        problems.append(f"shards: rows={rows} is not between 0 and {MOST_SHARDS}")
    if not _SHA256.fullmatch(sha256):
        problems.append(f"shards: sha256={show(sha256)} is not 64 lower-case hexadecimal digits")
    raise_problems(problems, where)


def _shard_problems(manifest: Manifest) -> list[str]:
    shards = manifest.shards
    if not 1 <= len(shards) <= MOST_SHARDS:
        return [f"shards has {len(shards)} rows" if len(shards) else "shards is empty"]
    problems = []
    for name, least in (("bytes", 1), ("blocks", 1), ("tokens", 1), ("documents", 0)):
        column = getattr(shards, name)
        for shard in np.flatnonzero((column < least) | (column >= LARGEST_COUNT)).tolist():
            problems.append(f"{shard_name(shard)}: {name}={column[shard]} is not between {least} and 2^43")
    if problems or manifest.block_tokens < 1:
        return problems
    # Divided, since blocks · block_tokens need not fit into int64.
    wrong = shards.blocks != (shards.tokens - 1) // min(manifest.block_tokens, LARGEST_INTEGER) + 1
    for shard in np.flatnonzero(wrong).tolist():
        problems.append(
            f"{shard_name(shard)}: tokens={shards.tokens[shard]} is not what blocks={shards.blocks[shard]} of "
            f"{manifest.block_tokens} hold"
        )
    return problems


def _total_problems(manifest: Manifest) -> Iterator[str]:
    """Rules that the totals break, given valid shards."""
    documents = int(manifest.shards.documents.sum())
    if manifest.documents != documents:
        yield f"documents={manifest.documents} but its shards hold {documents}"
    if manifest.layout == PACKED:
        yield from _packed_problems(manifest)
        return
    if manifest.layout != STREAM:
        yield f"layout={show(manifest.layout)} is not one of {', '.join(LAYOUTS)}"
    if manifest.tokens != manifest.stored_targets:
        yield f"tokens={manifest.tokens} but its shards hold {manifest.stored_targets}"
    for name, none in (("packed_seq_len", 0), ("pad_id", -1), ("padding_tokens", 0), ("documents_cut", 0)):
        if getattr(manifest, name) != none:
            yield f"{name}={getattr(manifest, name)} must be {none} in layout {manifest.layout!r}"


def _packed_problems(manifest: Manifest) -> Iterator[str]:
    seq_len, stored = manifest.packed_seq_len, manifest.stored_targets
    if manifest.pad_id in (-1, manifest.bos_id, manifest.eos_id):
        yield f"pad_id={manifest.pad_id} must be an id of its own in layout 'packed'"
    if manifest.documents_cut > manifest.documents:
        yield f"documents_cut={manifest.documents_cut} is more than documents={manifest.documents}"
    if seq_len < 2 or manifest.block_tokens % seq_len or stored % seq_len:
        yield f"packed_seq_len={seq_len} is below 2, or does not divide the blocks of {manifest.block_tokens} and all {stored}"
    elif manifest.tokens < 1 or manifest.tokens != packed_tokens(stored, seq_len, manifest.padding_tokens):
        yield (
            f"tokens={manifest.tokens} but {stored // seq_len} bins of {seq_len}, with padding_tokens="
            f"{manifest.padding_tokens}, hold {packed_tokens(stored, seq_len, manifest.padding_tokens)}"
        )


def packed_tokens(stored_targets: int, packed_seq_len: int, padding_tokens: int) -> int:
    """`tokens` of a packed corpus: the targets among its bins · packed_seq_len + 1 ids (see `Manifest`)."""
    return stored_targets + 1 - padding_tokens - stored_targets // packed_seq_len


def show(value: object) -> str:
    """A value for a message, truncated: it may come from an unchecked file."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 90
    return short.repr(value)


def raise_problems(problems: Sequence[str], where: str) -> None:
    """Raise one DataError with the first of `problems`, if there are any."""
    if not problems:
        return
    shown = [*problems[:_SHOWN_PROBLEMS], *([f"… {len(problems)} problems in all"] * (len(problems) > _SHOWN_PROBLEMS))]
    raise DataError(f"{where}: {'; '.join(shown)}", hint="encode the corpus again")
