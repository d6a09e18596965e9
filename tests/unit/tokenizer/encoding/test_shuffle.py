import numpy as np
import pytest

from pretrain.errors import DataError
from tokenizer.encoding import shuffle as windows
from tokenizer.encoding.shuffle import ShuffleWindow, shuffled, window_seed


@pytest.mark.parametrize("n", [0, 1, 2, 1_000])
def test_shuffled_is_a_permutation_that_follows_the_seed(n: int) -> None:
    order = shuffled(n, seed=3)
    assert sorted(order.tolist()) == list(range(n))
    assert (order == shuffled(n, seed=3)).all()
    if n == 1_000:
        assert (order != shuffled(n, seed=4)).mean() > 0.98


def test_the_shuffle_is_pinned() -> None:
    # The bytes of shards depend on it: these numbers may never change.
    assert shuffled(8, seed=0).tolist() == [1, 6, 4, 0, 5, 7, 3, 2]
    assert window_seed(0, 0, 0) == 12035550249420947055
    assert window_seed(7, 3, 2) == window_seed(7 + 2**64, 3, 2)


def test_every_window_has_a_seed_of_its_own() -> None:
    seeds = {window_seed(seed, task, window) for seed in range(8) for task in range(8) for window in range(8)}
    assert len(seeds) == 512


def drained(window: ShuffleWindow, seed: int = 0) -> list[list[int]]:
    documents = []
    for ids, lengths in window.drain(seed):
        assert ids.dtype == window.dtype
        documents += [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
        assert lengths.sum() == len(ids)
    return documents


@pytest.mark.parametrize("batch_ids", [1, 50, 1 << 20])
@pytest.mark.parametrize("chunk_ids", [1, 20, 1 << 20])
def test_a_window_gives_each_document_once_framed_and_shuffled(
    monkeypatch: pytest.MonkeyPatch, chunk_ids: int, batch_ids: int
) -> None:
    monkeypatch.setattr(windows, "_CHUNK_IDS", chunk_ids)
    monkeypatch.setattr(windows, "BATCH_IDS", batch_ids)
    documents = [[10 + i] * (i % 7) for i in range(80)]
    window = ShuffleWindow(1_000, "<u2")
    for _ in range(2):  # it can be used again
        for document in documents:
            window.add(1, np.array(document, np.int32), 2)
        assert len(window) == 80 and window.ids == sum(map(len, documents)) + 160
        found = drained(window)
        assert sorted(found) == sorted([1, *document, 2] for document in documents)
        assert found == [[1, *documents[i], 2] for i in shuffled(80, 0)]
        assert len(window) == window.ids == 0 and drained(window) == []


def test_a_window_is_full_by_ids_or_by_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_IDS", 30)
    monkeypatch.setattr(windows, "WINDOW_DOCUMENTS", 5)
    window = ShuffleWindow(100, "<u2")
    full = []
    for length in (8, 8, 8, 0, 0, 0, 0, 0):
        window.add(1, np.full(length, 5, np.int32), 2)
        full.append(window.full)
        if window.full:
            drained(window)
    assert full == [False, False, True, False, False, False, False, True]


def test_an_id_outside_the_vocabulary_is_refused_before_the_cast() -> None:
    for wrong in (-1, 100, 65_541):
        with pytest.raises(DataError, match=f"token id {wrong} is not between 0 and vocab_size-1 = 99"):
            ShuffleWindow(100, "<u2").add(1, np.array([5, wrong], np.int64), 2)
