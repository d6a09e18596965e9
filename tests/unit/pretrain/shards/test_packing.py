"""Documents in bins: nothing is lost, nothing is in two places, and few are cut."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.config.schema import SourceConfig
from pretrain.data.source import Source
from pretrain.errors import DataError
from pretrain.shards import packed_writer as write_bins
from pretrain.shards.manifest import Manifest
from pretrain.shards.manifest_file import read_manifest
from pretrain.shards.packed_writer import BinWriter, check_layout
from pretrain.shards.packing import cut_pieces, pack, pack_window
from pretrain.shards.writer import ShardWriter
from tests.support.shards import BOS, EOS, PAD, write_corpus, write_packed_corpus

FIRST = 10  # ids of documents are counted from here, so that each tells its place; PAD is below
lengths_of_documents = st.lists(st.integers(1, 50), min_size=1, max_size=60)


def best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The fill of each bin, by the definition of best-fit decreasing: look at every bin for every piece."""
    fills: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, fill in enumerate(fills) if fill + length <= capacity]
        if fitting:
            fills[max(fitting, key=lambda number: fills[number])] += length
        else:
            fills.append(length)
    return sorted(fills)


def fills_of(bins: np.ndarray, lengths: list[int]) -> list[int]:
    return np.bincount(bins, weights=lengths).astype(int).tolist()


@given(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), min_size=1, max_size=80)))
)
def test_pieces_are_packed_as_best_fit_decreasing_says(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    bins = pack(np.array(lengths), capacity)
    assert sorted(set(bins.tolist())) == list(range(int(bins.max()) + 1))
    assert sorted(fills_of(bins, lengths)) == best_fit(lengths, capacity)
    assert max(fills_of(bins, lengths)) <= capacity


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80))
def test_bins_come_in_the_order_of_their_longest_pieces(lengths: list[int]) -> None:
    bins = pack(np.array(lengths), 30).tolist()
    members = [[piece for piece, number in enumerate(bins) if number == wanted] for wanted in range(max(bins) + 1)]
    longest = [min(pieces, key=lambda piece: (-lengths[piece], piece)) for pieces in members]
    assert longest == sorted(longest)


def test_long_and_short_documents_are_spread_over_a_window() -> None:
    lengths = np.random.default_rng(0).integers(1, 1_000, 20_000)
    bins = pack(lengths, 2_048)
    longest = np.zeros(int(bins.max()) + 1)
    np.maximum.at(longest, bins, lengths)
    quarters = [part.mean() for part in np.array_split(longest, 4)]
    assert max(quarters) < 1.2 * min(quarters)  # best-fit decreasing by itself: from 940 to 410


@pytest.mark.parametrize(
    ("lengths", "pieces", "is_last"),
    [
        ([3, 8, 1], [3, 8, 1], [1, 1, 1]),
        ([9], [8, 1], [0, 1]),
        ([16, 2], [8, 8, 2], [0, 1, 1]),
        ([1, 25, 7], [1, 8, 8, 8, 1, 7], [1, 0, 0, 0, 1, 1]),
    ],
)
def test_long_documents_become_whole_bins_and_a_remainder(
    lengths: list[int], pieces: list[int], is_last: list[int]
) -> None:
    found = cut_pieces(np.array(lengths), 8)
    assert (found[0].tolist(), found[1].tolist()) == (pieces, [bool(last) for last in is_last])


@pytest.mark.parametrize("keep_emptiest", [False, True])
@given(lengths=lengths_of_documents, capacity=st.integers(1, 20))
def test_a_window_holds_every_id_once_and_pieces_in_order(
    lengths: list[int], capacity: int, keep_emptiest: bool
) -> None:
    ids = np.arange(sum(lengths)) + FIRST
    stops = np.cumsum(lengths) + FIRST  # of each document the id after its last
    window = pack_window(ids, np.array(lengths), capacity, PAD, keep_emptiest=keep_emptiest)
    placed = window.ids[window.ids != PAD]
    assert sorted([*placed.tolist(), *window.kept_ids.tolist()]) == ids.tolist()
    assert window.padding == (window.ids == PAD).sum()
    assert window.cut == sum(length > capacity for length in lengths)

    pieces: list[tuple[int, int]] = []  # first id and length, as they lie
    for row in window.ids.reshape(-1, capacity).tolist():
        filled = [token for token in row if token != PAD]
        assert filled and row == filled + [PAD] * (capacity - len(filled))
        breaks = [i for i in range(1, len(filled)) if filled[i] != filled[i - 1] + 1 or filled[i] in stops]
        for start, stop in zip([0, *breaks], [*breaks, len(filled)], strict=True):
            pieces.append((filled[start], stop - start))
        assert filled == sorted(filled)  # documents of a bin in their order
    expected = [
        (int(stop) - length + start, min(capacity, length - start))
        for stop, length in zip(stops, lengths, strict=True)
        for start in range(0, length, capacity)
    ]
    kept = [piece for piece in expected if piece[0] in window.kept_ids]
    assert sorted(pieces + kept) == sorted(expected)
    whole = [piece for piece in pieces if piece[1] == capacity]
    assert whole == sorted(whole)  # so the whole bins of a long document follow each other

    assert window.ends.tolist() == [i + 1 for i, token in enumerate(window.ids.tolist()) if token + 1 in stops]
    assert window.kept_lengths.tolist() == [length for _, length in kept]
    assert all(start + length in stops for start, length in kept)  # whole documents, or their remainders


def test_the_example_of_the_documentation() -> None:
    ids = np.repeat([ord("A"), ord("B"), ord("C")], [5, 12, 3])
    window = pack_window(ids, np.array([5, 12, 3]), 8, ord("p"), keep_emptiest=False)
    assert "".join(map(chr, window.ids)) == "AAAAACCCBBBBBBBBBBBBpppp"


def test_the_emptiest_of_several_bins_waits_for_the_next_window() -> None:
    ids, lengths = np.arange(9 + 4 + 7 + 2) + FIRST, np.array([9, 4, 7, 2])
    window = pack_window(ids, lengths, 10, PAD, keep_emptiest=True)
    assert window.kept_lengths.tolist() == [4]
    assert window.kept_ids.tolist() == ids[9:13].tolist()
    assert (len(window.ids), window.padding) == (20, 2)
    only = pack_window(ids[:9], lengths[:1], 10, PAD, keep_emptiest=True)
    assert (len(only.ids), len(only.kept_ids)) == (10, 0)
    full = pack_window(ids[:20], np.array([10, 10]), 10, PAD, keep_emptiest=True)
    assert (len(full.ids), len(full.kept_ids)) == (20, 0)


def test_a_usual_corpus_is_filled_to_998_per_mille_and_cut_a_third_as_often() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 12_000).astype(np.int64) + 3
    filled = written = cut = 0
    kept = np.empty(0, dtype=np.int64)
    for part in np.split(lengths, np.flatnonzero(np.diff(np.cumsum(lengths) >> 20)) + 1):
        lengths_here = np.concatenate([kept, part])
        window = pack_window(np.full(lengths_here.sum(), FIRST, np.int32), lengths_here, 2_048, PAD, keep_emptiest=True)
        filled, written, cut = filled + len(window.ids) - window.padding, written + len(window.ids), cut + window.cut
        kept = window.kept_lengths
    starts = np.cumsum(lengths) - lengths
    cut_in_a_stream = (starts // 2_048 != (starts + lengths - 1) // 2_048).sum()
    assert written > 8 << 20
    assert filled / written >= 0.998
    assert 0 < cut <= cut_in_a_stream / 3


def sequences_of(folder: Path, seq_len: int) -> np.ndarray:
    """All sequences as training reads them: (sequences, seq_len + 1)."""
    source = Source("a", SourceConfig(str(folder)), seq_len)
    source.check_shards()
    assert source.dropped_tokens == 0
    tokens = np.empty((len(source), seq_len + 1), np.int64)
    source.read(np.arange(len(source)), tokens)
    return tokens


def pieces_of(bins: np.ndarray) -> Counter[tuple[int, ...]]:
    """Each bin cut after every eos, padding taken off."""
    pieces: Counter[tuple[int, ...]] = Counter()
    for row in bins.tolist():
        piece: list[int] = []
        for token in row:
            if token != PAD:
                piece.append(token)
            if token == EOS:
                pieces[tuple(piece)] += 1
                piece = []
        if piece:
            assert len(piece) == len(row)
            pieces[tuple(piece)] += 1
    return pieces


def ends_of(folder: Path, manifest: Manifest) -> list[int]:
    """Where documents end according to the shards' doc.npy, counted from the first id of the corpus."""
    ends = []
    members = []
    for shard in manifest.shards:
        with tarfile.open(folder / shard.name) as tar:
            members += [np.load(io.BytesIO(tar.extractfile(name).read())) for name in tar.getnames() if "doc" in name]
    for block, found in enumerate(members):
        ends += (found + block * manifest.block_tokens).tolist()
    return ends


def check_corpus(folder: Path, manifest: Manifest, documents: list[list[int]], seq_len: int) -> None:
    """Hold what training reads against the documents, and the manifest's counts against what is there."""
    framed = [[BOS, *document, EOS] for document in documents]
    tokens = sequences_of(folder, seq_len)
    expected = Counter(tuple(ids[i : i + seq_len]) for ids in framed for i in range(0, len(ids), seq_len))
    assert pieces_of(tokens[:, :-1]) == expected
    assert (tokens[1:, 0] == tokens[:-1, -1]).all() and tokens[-1, -1] == PAD
    assert manifest.padding_tokens == (tokens[:, :-1] == PAD).sum() + 1
    assert manifest.stored_targets == tokens[:, :-1].size
    assert manifest.tokens == (tokens[:, 1:-1] != PAD).sum()
    assert ends_of(folder, manifest) == (np.flatnonzero(tokens[:, :-1].ravel() == EOS) + 1).tolist()
    assert manifest.documents == len(documents)
    assert manifest.documents_cut == sum(len(ids) > seq_len for ids in framed)


documents_of_ids = st.lists(st.lists(st.integers(FIRST, 999), max_size=70), min_size=1, max_size=50)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=documents_of_ids, seq_len=st.sampled_from([2, 8, 32, 64]), window=st.integers(1, 300))
def test_training_reads_every_document_from_the_shards(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], seq_len: int, window: int
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_bins, "WINDOW_TOKENS", window)
        manifest = write_packed_corpus(folder, documents, seq_len)
    assert read_manifest(folder) == manifest
    check_corpus(folder, manifest, documents, seq_len)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=lengths_of_documents, at_once=st.integers(1, 20), window=st.integers(1, 300))
def test_bytes_do_not_depend_on_how_documents_arrive(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], at_once: int, window: int
) -> None:
    def write(at_once: int) -> list[object]:
        folder = tmp_path_factory.mktemp("packed")
        with ShardWriter(folder, vocab_size=5_000, block_tokens=64, shard_bytes=400) as shards:
            writer = BinWriter(shards, seq_len=16, pad_id=PAD)
            for i in range(0, len(lengths), at_once):
                start, part = sum(lengths[:i]), lengths[i : i + at_once]
                writer.add(np.arange(start, start + sum(part)) + FIRST, np.array(part))
                writer.add(np.empty(0, np.int32), np.empty(0, np.int64))  # a batch of nothing but bad documents
            return [writer.finish(), writer.tokens, writer.padding_tokens, writer.documents_cut]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_bins, "WINDOW_TOKENS", window)
        assert write(1) == write(at_once)


def test_windows_are_written_as_they_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_bins, "WINDOW_TOKENS", 100)
    with ShardWriter(tmp_path, vocab_size=1_000, block_tokens=16, shard_bytes=32) as shards:
        writer = BinWriter(shards, seq_len=16, pad_id=PAD)
        for _ in range(100):
            writer.add(np.full(10, FIRST), np.array([10]))
            assert len(writer._ids) < 110
        assert len(list(tmp_path.glob("shard-*.tar"))) > 90


def test_a_padding_id_in_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="token id 3 is the padding id of the tokenizer, and a document holds it"):
        write_packed_corpus(tmp_path, [[5, PAD, 5]], 8)
    write_corpus(tmp_path, [BOS, 5, PAD, 5, EOS])


def test_no_document_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        write_packed_corpus(tmp_path, [], 8)


@pytest.mark.parametrize(
    ("layout", "seq_len", "message", "hint"),
    [
        ("sorted", None, "layout='sorted' is not one of stream, packed", ""),
        ("stream", 2_048, "seq_len=2048 has no meaning in layout 'stream'", "--layout packed"),
        ("packed", None, "layout 'packed' needs the length of its bins", "--seq-len N, where N is data.seq_len"),
        ("packed", 1_000, "seq_len=1000 .* does not divide the blocks of 131072 tokens", "--seq-len 1024"),
        ("packed", 1 << 18, "does not divide", "--seq-len 131072"),
        ("packed", 1, "seq_len=1 is less than 2", "--seq-len 128"),
        ("packed", 0, "seq_len=0 is less than 2", "--seq-len 128"),
    ],
)
def test_a_layout_and_a_length_that_do_not_go_together_are_refused(
    layout: str, seq_len: int | None, message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_layout(layout, seq_len, 1 << 17)
    assert hint in str(caught.value.hint)
    check_layout("stream", None, 1 << 17)
    check_layout("packed", 2_048, 1 << 17)
