"""Packed layout: documents in bins of exactly `seq_len` ids, so that few are cut (`encode --layout packed`).

Best-fit packing as in "Fewer Truncations Improve Language Modeling" (Ding et al. 2024, https://arxiv.org/abs/2404.10830),
in windows of about a million ids, which bounds memory and keeps documents near their shuffled place:

    documents   A: bos … eos   B: bos …………… eos     C: bos . eos      5, 12 and 3 ids; seq_len 8
    → pieces    A: bos … eos   B: bos ……… | … eos   C: bos . eos      5, 8 + 4 and 3: full bins and a remainder
    → bins      |A A A A A C C C|  |B B B B B B B B|  |B B B B pad pad pad pad|
    → stream    the bins one after the other, and at the very end one more pad

Only a full bin can hold a piece that does not end its document. So where pieces share a bin, each ends with its eos, and
padding follows an eos.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


class PackingWindow(NamedTuple):
    """Packed bins of a window.

    `ids` [bins * seq_len], with padding; `ends` [documents], positions of document ends; `kept_ids` and `kept_lengths`,
    documents for the next window; the numbers of documents `cut` and of `padding` ids.
    """

    ids: NDArray[np.integer]
    ends: Counts
    kept_ids: NDArray[np.integer]
    kept_lengths: Counts
    cut: int
    padding: int


def cut_pieces(lengths: Counts, capacity: int) -> tuple[Counts, NDArray[np.bool_]]:
    """Lengths of the pieces of documents of `lengths` [documents], in order, and whether each ends its document.

    A document longer than `capacity` becomes pieces of `capacity` and a shorter remainder, if there is one.
    """
    counts = -(-lengths // capacity)
    is_last = np.zeros(int(counts.sum()), dtype=np.bool_)
    is_last[np.cumsum(counts) - 1] = True
    pieces = np.full(len(is_last), capacity, dtype=np.int64)
    pieces[is_last] = lengths - (counts - 1) * capacity
    return pieces, is_last


def pack(lengths: Counts, capacity: int) -> Counts:
    """The bin (int64 [pieces]) of each piece, 1 <= `lengths` [pieces] <= `capacity`, by best-fit decreasing.

    Pieces are placed from the longest to the shortest, each into the bin with the least sufficient room, or a new one. Bins
    are numbered in the order of the pieces that opened them: so a corpus in random order gives bins in an order that hardly
    depends on length, and the full bins of a long document are adjacent. Time: a sort, and `capacity` bits per piece.
    """
    by_length = np.argsort(-lengths, kind="stable")
    bin_of = np.empty(len(lengths), dtype=np.int64)
    openers: list[int] = []
    with_room: defaultdict[int, list[int]] = defaultdict(list)  # bins by the room that is left
    rooms = 0  # a set as bits: r is in it where with_room[r] is not empty
    for piece, length in zip(by_length.tolist(), lengths[by_length].tolist(), strict=True):
        room, number = capacity, len(openers)
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1  # the lowest bit
            number = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            openers.append(piece)
        bin_of[piece] = number
        if room > length:
            with_room[room - length].append(number)
            rooms |= 1 << (room - length)
    return np.argsort(np.argsort(openers))[bin_of]


def pack_window(
    ids: NDArray[np.integer], lengths: Counts, seq_len: int, pad_id: int, *, keep_emptiest: bool
) -> PackingWindow:
    """Pack documents: `ids` [N] one after the other, and their `lengths` [documents], which sum to N.

    `keep_emptiest` defers the documents of the emptiest of several bins to the next window, where they may fit better.
    """
    pieces, is_last = cut_pieces(lengths, seq_len)
    bins = pack(pieces, seq_len)
    starts = np.cumsum(pieces) - pieces
    fill = np.bincount(bins, weights=pieces).astype(np.int64)
    emptiest = int(np.argmin(fill))
    kept = np.zeros(len(pieces), dtype=np.bool_)
    if keep_emptiest and len(fill) > 1 and fill[emptiest] < seq_len:
        kept = bins == emptiest
        bins = bins - (bins > emptiest)
        fill = np.delete(fill, emptiest)
    order = np.lexsort((np.arange(len(pieces)), bins))
    order = order[~kept[order]]
    # Where each piece begins in the bins: after the pieces before it, and after the padding of the bins before its own.
    before = np.cumsum(pieces[order]) - pieces[order]
    targets = before + (np.cumsum(seq_len - fill) - (seq_len - fill))[bins[order]]
    packed = np.full(len(fill) * seq_len, pad_id, dtype=ids.dtype)
    packed[_ranges(targets, pieces[order])] = ids[_ranges(starts[order], pieces[order])]
    return PackingWindow(
        ids=packed,
        ends=(targets + pieces[order])[is_last[order]],
        kept_ids=ids[_ranges(starts[kept], pieces[kept])],
        kept_lengths=pieces[kept],
        cut=int((lengths > seq_len).sum()),
        padding=int((seq_len - fill).sum()),
    )


def _ranges(starts: Counts, lengths: Counts) -> Counts:
    """starts[0], starts[0] + 1, … (lengths[0] of them), starts[1], … in one array."""
    before = np.cumsum(lengths) - lengths
    result: Counts = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return result
