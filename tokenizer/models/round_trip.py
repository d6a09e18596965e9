"""Information that a text loses between encoding and decoding with a tokenizer.json.

Our SentencePiece models are lossless. Other tokenizers need not be, and any part of the file can cause it: probe texts show
whether it can happen, and then each text is decoded. What the file's normalizer alone changes (NFC) is what the weights are
used to; anything else is lost.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tokenizer.models.base import SPACE_MARK
from tokenizer.models.hf_json import HFTokenizer

# Text: its description in the finding.
PROBES = {
    "e\u0301": "a letter and its accent as two characters",
    "\u00e9": "an accented letter",
    "\ufb01": "a ligature",
    "\uff21": "a full-width letter",
    "Ab": "a capital letter",
    " a": "a space before a text",
    "  a": "two spaces before a text",
    "a ": "a space after a text",
    "a  b": "two spaces in a row",
    "a .": "a space before a full stop",
    "a\n\tb": "a line break and a tab",
    "a\r\nb": "a carriage return",
    "a\u00a0b": "a no-break space",
    "a\u200bb": "a zero-width space",
    "a\x00b": "a NUL",
    "\U00013000": "a rare character",
    "a\U0001f9d1\U0001f3ff\u200d\U0001f680": "an emoji of several code points",
}


def round_trip_losses(tokenizer: HFTokenizer) -> list[str]:
    """A sentence for each of PROBES that is not restored, then one about the normalizer, if there is one."""
    losses = []
    for text, description in PROBES.items():
        decoded = tokenizer.decode(tokenizer.encode(text))
        if decoded != text:
            losses.append(f"{description} is not restored: {text!a} becomes {decoded!a}")
    normalizer = describe_part(tokenizer.tokenizer_json.get("normalizer"))
    if losses and normalizer:
        losses.append(f"its normalizer is {normalizer}")
    return losses


Losses = Callable[[str, Sequence[int]], str]  # text and its ids -> what is lost, or ""


def losses_of(tokenizer: HFTokenizer) -> Losses | None:
    """A check of texts for what is lost beyond the normalizer's changes; None if the file loses nothing."""
    normalizer = tokenizer.backend.normalizer

    def lost(text: str, ids: Sequence[int]) -> str:
        decoded = tokenizer.decode(ids)
        normalized = text if normalizer is None else normalizer.normalize_str(text)
        spaced = normalized.replace(SPACE_MARK, " ")
        if decoded in (text, text.replace(SPACE_MARK, " "), normalized, spaced, spaced.removeprefix(" ")):
            return ""
        start = next((n for n, pair in enumerate(zip(text, decoded, strict=False)) if pair[0] != pair[1]), len(decoded))
        shown = slice(max(0, start - 8), start + 8)
        return f"{text[shown]!a} comes back as {decoded[shown]!a}"

    restored = not any(lost(text, tokenizer.encode(text)) for text in PROBES)
    return None if restored and _has_all_bytes(tokenizer) else lost


def _has_all_bytes(tokenizer: HFTokenizer) -> bool:
    """Whether any character has ids: by its bytes, as tokens of their own."""
    from tokenizers import pre_tokenizers

    vocabulary = tokenizer.backend.get_vocab()
    if tokenizer.tokenizer_json["model"].get("byte_fallback") is True:
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    by_bytes = "ByteLevel" in describe_part(tokenizer.tokenizer_json.get("pre_tokenizer"))
    return by_bytes and all(character in vocabulary for character in pre_tokenizers.ByteLevel.alphabet())


def describe_part(part: Any) -> str:
    """A normalizer, pre-tokenizer or decoder of a tokenizer.json, described in a few words; empty for none."""
    if not isinstance(part, dict):
        return ""
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        if isinstance(part.get(key), list):
            return ", ".join(filter(None, map(describe_part, part[key])))
    shown = [
        f"{key}={_short(value)}" for key, value in part.items() if key != "type" and value not in (None, {}, [], "")
    ]
    described = f"{part.get('type')}({', '.join(shown)})" if shown else str(part.get("type"))
    # Printed in a terminal, and the file is untrusted.
    return "".join(char if char.isprintable() else "?" for char in described)


def _short(value: Any) -> str:
    if isinstance(value, dict) and len(value) == 1:  # {"Regex": …}, {"String": …}
        value = next(iter(value.values()))
    text = str(value) if isinstance(value, bool | int) else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
