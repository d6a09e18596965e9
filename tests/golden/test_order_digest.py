"""The order of a fixed mixture, pinned. A change here changes what every run reads after a resume: bump the format in
`Order.description` (so that old checkpoints are refused) before committing new digests."""

import hashlib

import numpy as np
import pytest

from pretrain.data.order import Order, OrderedSource, Stage

LARGE = OrderedSource("large", 30_003, "1f" * 32)
MEDIUM = OrderedSource("medium", 140_001, "5c" * 32)
SMALL = OrderedSource("small", 301, "e7" * 32)
STAGES = [
    Stage(0, {"large": 3.0, "small": 1.0}),
    Stage(4_999, {"large": 1.0, "medium": 0.5, "small": 0.01}),
    Stage(100_003, {"medium": 1.0, "large": 0.7}),
]
ORDER = Order([LARGE, MEDIUM, SMALL], STAGES, seq_len=2_048, seed=1_234, lanes=16, span=8)
SAMPLES = ORDER(np.arange(300_000))

DIGESTS = {
    "source": "7c6bdedda5eaa8fbc3052230c6e0b915c523e6b5d1868db2213676f365ae3168",
    "epoch": "250f9544743b1213dec90c4f029596b6f0f71096d7693899e5107d76937166bb",
    "sequence": "846cd1625c81e30e4986f8ebe19debcbc51b202daacf522be70e68f128ed28eb",
}


def test_the_fixed_order_covers_both_kinds_of_source_both_tables_and_several_epochs() -> None:
    assert [ORDER.is_small(number) for number in range(3)] == [False, False, True]
    assert [table.period > 4_096 for table in ORDER.tables] == [False, True, False]
    assert [SAMPLES.epoch[SAMPLES.source == number].max() for number in range(3)] == [5, 1, 6]


@pytest.mark.parametrize("column", sorted(DIGESTS))
def test_the_samples_never_change(column: str) -> None:
    values = getattr(SAMPLES, column)
    assert hashlib.sha256(values.astype("<i8").tobytes()).hexdigest() == DIGESTS[column]


def test_the_fingerprint_never_changes() -> None:
    assert ORDER.fingerprint == "33c0aafbb1a2ad74f5499e49920cc6a875336c87ead667788c47691b3cfec377"
