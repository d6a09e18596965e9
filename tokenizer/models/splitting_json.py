"""Where a long text may be cut without changing what a tokenizer.json makes of it.

GPT-2 and its kin split a text into words by a regular expression, and merge within words only. None of their words holds
a space after a letter, and whether one ends there depends on nothing further to the left or right. So the ids of parts that
are cut between an ASCII letter and a space, joined, are the ids of the whole. Of any other file that is not known.

One call on a document of 16 MB takes 1.9 GB of memory: the library keeps some 300 bytes for each token.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizer.models.hf_json import HFTokenizer

PART = 1 << 20  # characters
_BOUNDARY = re.compile("[A-Za-z] ")
# Of Llama 3 and OLMo 2, and of Qwen 2 and 3; GPT-2's is a part of the library.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = (_WORDS % "{1,3}", _WORDS % "")


def cut_at_words(text: str, size: int = PART) -> list[str]:
    """Parts of `text` that join to it, each cut at the first place that allows it at `size` characters or more."""
    parts, start = [], 0
    while len(text) - start > size and (match := _BOUNDARY.search(text, start + size - 1)):
        parts.append(text[start : match.start() + 1])
        start = match.start() + 1
    parts.append(text[start:])
    return parts


def can_cut(codec: HFTokenizer) -> bool:
    """Whether `cut_at_words` keeps the ids of this tokenizer."""
    definition = codec.definition
    added = codec.tokenizer.get_added_tokens_decoder().values()
    return (
        definition["model"].get("type") == "BPE"
        and (definition.get("normalizer") or {"type": "NFC"}) == {"type": "NFC"}
        and _splits_at_words(definition.get("pre_tokenizer"))
        and not any(token.rstrip or token.single_word or _BOUNDARY.search(token.content) for token in added)
    )


def _splits_at_words(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    if part.get("type") == "ByteLevel":
        return part.get("use_regex", True) is True and part.get("add_prefix_space") is False
    steps = part.get("pretokenizers")
    if part.get("type") != "Sequence" or not isinstance(steps, list) or len(steps) != 2:
        return False
    split, level = steps
    return (
        split.get("type") == "Split"
        and split.get("pattern") in [{"Regex": pattern} for pattern in PATTERNS]
        and (split.get("behavior"), split.get("invert")) == ("Isolated", False)
        and (level.get("type"), level.get("use_regex"), level.get("add_prefix_space")) == ("ByteLevel", False, False)
    )
