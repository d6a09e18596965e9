"""Division of a corpus into two that share no text: documents to train on, and documents held out for evaluation.

The hash of a text alone decides, so duplicates fall on one side, in whatever file, order or process they are read.
"""

from hashlib import sha256

from tokenizer.corpus.rejection_log import HELD_OUT, TRAINED_ON

TRAIN, VALID = PARTS = ("train", "valid")


def left_out(text: str, share: float, part: str) -> str:
    """Why `text` is not in this part, if about `share` of all texts are held out; empty if it is, or without parts."""
    if not part:
        return ""
    # Bytes that the deduplication does not use.
    held_out = int.from_bytes(sha256(text.encode()).digest()[16:24], "big") < share * 2**64
    if held_out == (part == VALID):
        return ""
    return HELD_OUT if held_out else TRAINED_ON
