"""A SentencePiece BPE model as the token list of a GGUF file.

llama.cpp's tokenizer model "llama" merges by score like SentencePiece: best score first, leftmost on a tie, with byte
fallback. Two switches keep the ids: no space before a text, and `<s>` before each text, as before each document of the
shards.

llama.cpp looks up a merged symbol among *all* tokens, SentencePiece among the normal ones. So if a text spells a control
symbol or a byte piece (`</s>`, `<0x0A>`) and its halves are pieces (`</` and `s>`), llama.cpp gives the token and
SentencePiece the pieces. `without_special_spellings` drops such texts; the ids of all others are equal.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tokenizer.models.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN
from tokenizer.models.sentencepiece_to_hf import special_tokens

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]


def add_tokenizer_keys(writer: Any, model: "ModelProto", vocab_size: int, gguf: Any) -> None:
    """Add tokens, scores, types and special ids. Embedding rows beyond the pieces become unused tokens.

    The model must have passed `refuse_unless_exportable`.
    """
    types = {
        NORMAL: gguf.TokenType.NORMAL,
        UNKNOWN: gguf.TokenType.UNKNOWN,
        CONTROL: gguf.TokenType.CONTROL,
        BYTE: gguf.TokenType.BYTE,
    }
    surplus = range(len(model.pieces), vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*(piece.piece for piece in model.pieces), *(f"[PAD{row}]" for row in surplus)])
    writer.add_token_scores([*(piece.score for piece in model.pieces), *(-10_000.0 for _ in surplus)])
    writer.add_token_types([*(types[piece.type] for piece in model.pieces), *(gguf.TokenType.UNUSED for _ in surplus)])
    special = special_tokens(model)
    for found, add in (
        (special.unk, writer.add_unk_token_id),
        (special.bos, writer.add_bos_token_id),
        (special.eos, writer.add_eos_token_id),
        (special.pad, writer.add_pad_token_id),
    ):
        if found is not None:
            add(found[0])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def without_special_spellings(texts: Iterable[str], model: "ModelProto") -> list[str]:
    """The texts that spell no control symbol and no byte piece such as `<0x0A>`."""
    names = [piece.piece for piece in model.pieces if piece.type != NORMAL]
    return [text for text in texts if not any(name in text for name in names)]
