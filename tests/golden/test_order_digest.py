"""The order of a fixed mixture, pinned. A change here changes what every run reads after a resume: bump the format in
`Order.description` (so that old checkpoints are refused) before committing new digests."""

import hashlib

import numpy as np
import pytest

from pretrain.data.order import Order, OrderedSource

LARGE = OrderedSource("large", 3.0, 5_003, "1f" * 32)
SMALL = OrderedSource("small", 1.0, 301, "e7" * 32)
ORDER = Order([LARGE, SMALL], seq_len=2_048, seed=1_234, lanes=16, span=8)

DIGESTS = {
    "source": "a7d5e75ee641168bae4c1ea3653fddff5bd1df6192dd21a59227a6bf267012fd",
    "epoch": "32343817e13cef58d1c1aa9ef6d445b653f1832855b9efedb365f39b0612ef1d",
    "sequence": "28814935e73c8a49ae36c7158990f209b67fee3fd991d63a73a53779d9de110a",
}


def test_the_fixed_order_covers_both_kinds_of_source_and_several_epochs() -> None:
    samples = ORDER(np.arange(10_000))
    assert [ORDER.is_small(0), ORDER.is_small(1)] == [False, True]
    assert [samples.epoch[samples.source == number].max() for number in (0, 1)] == [1, 8]


@pytest.mark.parametrize("column", sorted(DIGESTS))
def test_the_first_ten_thousand_samples_never_change(column: str) -> None:
    values = getattr(ORDER(np.arange(10_000)), column)
    assert hashlib.sha256(values.astype("<i8").tobytes()).hexdigest() == DIGESTS[column]


def test_the_fingerprint_never_changes() -> None:
    assert ORDER.fingerprint == "7cf01e912c387b3f1e10ca4636653c6db6cf2efcdb8cbb75585ebb74ddbc7ba8"
