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
    "source": "92fc490b1dea28bdb045013d4198a48e0f7a7c5abfba707778ab0710a976a818",
    "epoch": "d39ea0d48ad0e4b61a159fe1c2d7c095e37c2ad9e1f80d8acde9bf476441cd78",
    "sequence": "03fe75b92809eac459213f53d71cc641cc6f85bdca74eae7e7c1bf8e4af49c8e",
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
    assert ORDER.fingerprint == "d89d8b350bc202a1010d59eacbff0653528f8ec6c9977a130adffc62d2fc55c4"
