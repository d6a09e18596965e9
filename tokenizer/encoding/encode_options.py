"""What all tasks of an encoding share: the options, and what the tokenizer says of itself."""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pretrain.errors import DataError
from pretrain.shards.format import BLOCK_TOKENS
from pretrain.shards.manifest import PACKED, STREAM
from pretrain.shards.packed_writer import check_layout, check_padding
from pretrain.shards.writer import SHARD_BYTES
from tokenizer.corpus.readers import ReadOptions
from tokenizer.models.base import is_tokenizer_json, tokenizer_sha256
from tokenizer.models.open_tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What all tasks of a corpus share.

    The ids are those of the tokenizer's special tokens, -1 where it has none: a document without `bos_id` is ids + eos.
    `sentencepiece_version` is that of what encodes, with its name where that is not SentencePiece. `seq_len` is the length
    of a bin, and makes the layout "packed". `deduplicate` leaves out documents whose text came before.
    """

    tokenizer: Path
    tokenizer_sha256: str
    sentencepiece_version: str
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    reading: ReadOptions = field(default_factory=ReadOptions)
    seed: int = 0
    seq_len: int | None = None
    deduplicate: bool = False
    block_tokens: int = BLOCK_TOKENS
    shard_bytes: int = SHARD_BYTES
    max_bad_documents: int = 100


def describe(
    tokenizer: Path,
    *,
    reading: ReadOptions | None = None,
    seed: int = 0,
    layout: str = STREAM,
    seq_len: int | None = None,
    deduplicate: bool = False,
    max_bad_documents: int = 100,
    block_tokens: int = BLOCK_TOKENS,
    shard_bytes: int = SHARD_BYTES,
) -> Encoding:
    """The options of an encoding, checked, with what the tokenizer says of itself.

    Raises DataError, and UserError where a tokenizer.json needs a package that is missing.

    Layout "packed" needs `seq_len`, the ids of a bin: the sequence length of training.
    """
    model = load_tokenizer(tokenizer)
    if seed < 0:
        raise DataError(f"seed={seed} is negative")
    if block_tokens < 1:
        raise DataError(f"block_tokens={block_tokens} is less than 1")
    check_layout(layout, seq_len, block_tokens)
    if layout == PACKED:
        check_padding(tokenizer, pad_id=model.pad_id(), bos_id=model.bos_id(), eos_id=model.eos_id())
    return Encoding(
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        sentencepiece_version=encoder_version(tokenizer),
        vocab_size=model.vocab_size(),
        bos_id=model.bos_id(),
        eos_id=model.eos_id(),
        pad_id=model.pad_id(),
        reading=reading or ReadOptions(),
        seed=seed,
        seq_len=seq_len,
        deduplicate=deduplicate,
        max_bad_documents=max_bad_documents,
        block_tokens=block_tokens,
        shard_bytes=shard_bytes,
    )


def encoder_version(tokenizer: Path) -> str:
    """`0.2.1` of SentencePiece, `tokenizers 0.22.1` of what reads a tokenizer.json."""
    return f"tokenizers {version('tokenizers')}" if is_tokenizer_json(tokenizer) else version("sentencepiece")
