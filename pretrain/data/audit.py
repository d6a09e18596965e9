"""Digest of the sequences that a step consumed: equal for any number of ranks, different for any other sequence.

Each sequence is hashed with its global sample id g: blake2b over g, inputs and targets, 16 bytes. The digest of a step is the
sum of these, as two integers modulo 2^64, over all micro-batches and ranks. A sum does not depend on the order of addition.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def sequence_sums(batches: Sequence[Mapping[str, Any]]) -> list[int]:
    """Two signed 64-bit sums over the sequences of this rank's micro-batches."""
    hashes = [
        hashlib.blake2b(
            np.int64(g).tobytes() + inputs.numpy().tobytes() + targets.numpy().tobytes(), digest_size=16
        ).digest()
        for batch in batches
        for g, inputs, targets in zip(batch["samples"], batch["inputs"], batch["targets"], strict=True)
    ]
    words = np.frombuffer(b"".join(hashes), dtype="<i8").reshape(-1, 2)
    return [int(word) for word in words.sum(axis=0)]  # NumPy's sum wraps around


def digest(sums: Sequence[int]) -> str:
    """Sums over all ranks as 32 hexadecimal digits."""
    return np.array(sums, dtype="<i8").tobytes().hex()
