"""Options of an encoding, and what they need to know of the tokenizer."""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pretrain.errors import DataError
from pretrain.shards.format import BLOCK_TOKENS
from pretrain.shards.manifest import PACKED, STREAM
from pretrain.shards.packed_writer import check_layout, check_padding
from pretrain.shards.writer import SHARD_BYTES
from tokenizer.corpus.readers import ReadOptions
from tokenizer.encoding.holdout import PARTS
from tokenizer.models.base import is_tokenizer_json, tokenizer_sha256
from tokenizer.models.open_tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Options of `tokenizer encode`. Raises DataError for an impossible value.

    Layout "packed" needs `seq_len`, the ids of a bin: the sequence length of training. `deduplicate` leaves out documents
    whose text occurs earlier in the corpus. With `part`, only the documents of this part are encoded: about the share
    `holdout` is part "valid", the rest "train" (holdout.py).
    """

    reading: ReadOptions = field(default_factory=ReadOptions)
    seed: int = 0
    layout: str = STREAM
    seq_len: int | None = None
    deduplicate: bool = False
    block_tokens: int = BLOCK_TOKENS
    shard_bytes: int = SHARD_BYTES
    max_bad_documents: int = 100
    max_bad_files: int = 0
    holdout: float = 0.0
    part: str = ""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise DataError(f"seed={self.seed} is negative", hint="--seed 0, or any larger number")
        if self.block_tokens < 1:
            raise DataError(f"block_tokens={self.block_tokens} is less than 1")
        if self.part not in ("", *PARTS) or bool(self.part) != (0 < self.holdout < 1):
            raise DataError(
                f"holdout={self.holdout:g} is not between 0 and 1", hint="--holdout 0.5%, the share of all documents"
            )
        check_layout(self.layout, self.seq_len, self.block_tokens)


@dataclass(frozen=True, kw_only=True)
class Encoding(EncodeOptions):
    """Options plus facts of the tokenizer: all that the tasks of a corpus share.

    The ids are those of its special tokens, -1 if it has none; without `bos_id` a document is ids + eos.
    `sentencepiece_version` is the version of the encoding library, with its name if that is not SentencePiece.
    """

    tokenizer: Path
    tokenizer_sha256: str
    sentencepiece_version: str
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int


def make_encoding(tokenizer: Path, options: EncodeOptions) -> Encoding:
    """Add the facts of a tokenizer to `options`.

    Raises DataError if the tokenizer is unusable or does not allow the layout, UserError if a tokenizer.json needs a
    package that is missing.
    """
    model = load_tokenizer(tokenizer)
    if options.layout == PACKED:
        check_padding(tokenizer, pad_id=model.pad_id(), bos_id=model.bos_id(), eos_id=model.eos_id())
    return Encoding(
        **vars(options),
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        sentencepiece_version=encoder_version(tokenizer),
        vocab_size=model.vocab_size(),
        bos_id=model.bos_id(),
        eos_id=model.eos_id(),
        pad_id=model.pad_id(),
    )


def encoder_version(tokenizer: Path) -> str:
    """Version of the encoding library: `0.2.1` of SentencePiece, `tokenizers 0.22.1` for a tokenizer.json."""
    return f"tokenizers {version('tokenizers')}" if is_tokenizer_json(tokenizer) else version("sentencepiece")
