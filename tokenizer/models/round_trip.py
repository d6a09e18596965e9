"""What a text may lose on its way through the ids of a tokenizer.json.

A SentencePiece model of ours gives each text back, byte for byte. Other people's tokenizers need not: their ids are right
for the weights all the same, and whoever trains on with them has to know. It is found by trying, since any part of the
file can be the cause, and each finding says what was tried.
"""

from typing import Any

from tokenizer.models.hf_json import HFTokenizer

# What is tried, and why it may change.
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
    "a\u200bb": "a space of no width",
    "a\x00b": "a NUL",
    "\U00013000": "a rare character",
    "a\U0001f9d1\U0001f3ff\u200d\U0001f680": "an emoji of several characters",
}


def losses(codec: HFTokenizer) -> list[str]:
    """A sentence for each of PROBES that does not come back as it was, and one about the normalizer, if there is one."""
    found = []
    for text, what in PROBES.items():
        back = codec.decode(codec.encode(text))
        if back != text:
            found.append(f"{what} does not come back: {text!a} as {back!a}")
    normalizer = describe_part(codec.definition.get("normalizer"))
    if found and normalizer:
        found.append(f"its normalizer is {normalizer}")
    return found


def describe_part(part: Any) -> str:
    """A normalizer, pre-tokenizer or decoder of a tokenizer.json in a few words; empty for none."""
    if not isinstance(part, dict):
        return ""
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        if isinstance(part.get(key), list):
            return ", ".join(filter(None, map(describe_part, part[key])))
    shown = [
        f"{key}={_short(value)}" for key, value in part.items() if key != "type" and value not in (None, {}, [], "")
    ]
    described = f"{part.get('type')}({', '.join(shown)})" if shown else str(part.get("type"))
    # It is shown in a terminal, and comes from whoever made the file.
    return "".join(char if char.isprintable() else "?" for char in described)


def _short(value: Any) -> str:
    if isinstance(value, dict) and len(value) == 1:  # {"Regex": …}, {"String": …}
        value = next(iter(value.values()))
    text = str(value) if isinstance(value, bool | int) else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
