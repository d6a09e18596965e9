"""Readable labels of tokens, with spaces, line breaks and single bytes visible."""

from collections.abc import Sequence

from tokenizer.models.base import SPACE_MARK, Tokenizer

_INCOMPLETE = "\ufffd"  # decoding of a part of a character
_SIGNS = {" ": "␣", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def token_labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """One label per id: its text with invisible characters escaped, or `<0xE2>` for a byte of a character."""
    if hasattr(tokenizer, "id_to_piece"):  # SentencePiece: the text, with a mark for each space
        return [escape_invisible(tokenizer.id_to_piece(int(token)).replace(SPACE_MARK, " ")) for token in ids]
    return [escape_invisible(_text_at(tokenizer, ids, i)) for i in range(len(ids))]


def escape_invisible(text: str) -> str:
    """`text` with ␣ for spaces, and escapes for unprintable and bidirectional characters."""
    return "".join(
        _SIGNS.get(char) or (char if char.isprintable() else char.encode("unicode_escape").decode()) for char in text
    )


def _text_at(tokenizer: Tokenizer, ids: Sequence[int], i: int) -> str:
    """Text that a token of a tokenizer.json appends: some decoders treat the first token differently."""
    special: dict[int, str] = getattr(tokenizer, "special_tokens", {})
    if ids[i] in special:
        return special[ids[i]]
    before, after = tokenizer.decode(ids[:i]), tokenizer.decode(ids[: i + 1])
    if after.startswith(before) and _INCOMPLETE not in after[len(before) :] and after != before:
        return after[len(before) :]
    raw = str(tokenizer.backend.id_to_token(ids[i]))  # type: ignore[attr-defined]
    # Other vocabularies spell a single byte as `<0xE2>` already.
    byte_level = "ByteLevel" in str(tokenizer.tokenizer_json.get("decoder"))  # type: ignore[attr-defined]
    in_bytes = byte_level and all(char in BYTES for char in raw)
    return "".join(f"<0x{BYTES[char]:02X}>" for char in raw) if in_bytes else raw


def _byte_alphabet() -> dict[str, int]:
    """Character → byte of a byte-level vocabulary: the inverse of GPT-2's `bytes_to_unicode`.

    Source: `src/encoder` of https://github.com/openai/gpt-2
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + number): byte for number, byte in enumerate(others)}


BYTES = _byte_alphabet()
