"""The tokens of a text as a person can tell them apart: every space, line break and lone byte is seen."""

from collections.abc import Sequence

from tokenizer.models.base import SPACE_MARK, Tokenizer

_UNFINISHED = "\ufffd"  # what decoding gives for a part of a character
_SIGNS = {" ": "␣", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def token_labels(codec: Tokenizer, ids: Sequence[int]) -> list[str]:
    """One string for each id: its text with signs for what is not seen, or `<0xE2>` for a byte of a character."""
    if hasattr(codec, "id_to_piece"):  # SentencePiece: a piece is its text, with a mark for each space
        return [escape_invisible(codec.id_to_piece(int(token)).replace(SPACE_MARK, " ")) for token in ids]
    return [escape_invisible(_text_of(codec, ids, place)) for place in range(len(ids))]


def escape_invisible(text: str) -> str:
    """`text` with a sign for each space, and an escape for what does not print or would reorder its surroundings."""
    return "".join(
        _SIGNS.get(char) or (char if char.isprintable() else char.encode("unicode_escape").decode()) for char in text
    )


def _text_of(codec: Tokenizer, ids: Sequence[int], place: int) -> str:
    """What a token of a tokenizer.json adds to the text before it, since some decoders treat the first one apart."""
    special: dict[int, str] = getattr(codec, "special", {})
    if ids[place] in special:
        return special[ids[place]]
    before, after = codec.decode(ids[:place]), codec.decode(ids[: place + 1])
    if after.startswith(before) and _UNFINISHED not in after[len(before) :] and after != before:
        return after[len(before) :]
    raw = str(codec.tokenizer.id_to_token(ids[place]))  # type: ignore[attr-defined]
    # Elsewhere than in a byte-level vocabulary, a lone byte is spelt `<0xE2>` already.
    byte_level = "ByteLevel" in str(codec.definition.get("decoder"))  # type: ignore[attr-defined]
    in_bytes = byte_level and all(char in BYTES for char in raw)
    return "".join(f"<0x{BYTES[char]:02X}>" for char in raw) if in_bytes else raw


def _byte_alphabet() -> dict[str, int]:
    """Which character of a byte-level vocabulary stands for which byte: GPT-2's `bytes_to_unicode`, the other way round.

    Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + number): byte for number, byte in enumerate(others)}


BYTES = _byte_alphabet()
