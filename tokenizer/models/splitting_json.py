"""Split a long text without changing the ids that a tokenizer.json gives it.

GPT-2 and its successors split a text into words by a regular expression and merge only within words. None of their words
has a space after a letter, and whether a word ends there depends on nothing further left or right. So the ids of parts
that are split between an ASCII letter and a space, concatenated, are the ids of the text. Other pre-tokenizers are not
known to have this property, so their texts are not split.

Splitting bounds memory: the library needs about 300 bytes a token, 1.9 GB for a document of 16 MB in one call.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizer.models.hf_json import HFTokenizer

PART = 1 << 20  # characters
_BOUNDARY = re.compile("[A-Za-z] ")
# Llama 3 and OLMo 2; Qwen 2 and 3. GPT-2's is built into the library.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = (_WORDS % "{1,3}", _WORDS % "")


def split_at_words(text: str, size: int = PART) -> list[str]:
    """Parts of `text` that concatenate to it; each ends at the first word end at >= `size` characters."""
    parts, start = [], 0
    while len(text) - start > size and (match := _BOUNDARY.search(text, start + size - 1)):
        parts.append(text[start : match.start() + 1])
        start = match.start() + 1
    parts.append(text[start:])
    return parts


def can_split(tokenizer: HFTokenizer) -> bool:
    """Whether `split_at_words` keeps the ids of this tokenizer."""
    parts = tokenizer.tokenizer_json
    added = tokenizer.backend.get_added_tokens_decoder().values()
    return (
        parts["model"].get("type") == "BPE"
        and (parts.get("normalizer") or {"type": "NFC"}) == {"type": "NFC"}
        and _pre_tokenizes_into_words(parts.get("pre_tokenizer"))
        and not any(token.rstrip or token.single_word or _BOUNDARY.search(token.content) for token in added)
    )


def _pre_tokenizes_into_words(pre_tokenizer: Any) -> bool:
    if not isinstance(pre_tokenizer, dict):
        return False
    if pre_tokenizer.get("type") == "ByteLevel":
        return pre_tokenizer.get("use_regex", True) is True and pre_tokenizer.get("add_prefix_space") is False
    steps = pre_tokenizer.get("pretokenizers")
    if pre_tokenizer.get("type") != "Sequence" or not isinstance(steps, list) or len(steps) != 2:
        return False
    split, level = steps
    return (
        split.get("type") == "Split"
        and split.get("pattern") in [{"Regex": pattern} for pattern in PATTERNS]
        and (split.get("behavior"), split.get("invert")) == ("Isolated", False)
        and (level.get("type"), level.get("use_regex"), level.get("add_prefix_space")) == ("ByteLevel", False, False)
    )
