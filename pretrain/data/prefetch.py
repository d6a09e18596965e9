"""Prefetching blocks of remote sources: a pipeline stage between plan and read.

    plan ──► items with source and sequence ──► │ window: pinned items, in order │ ──► read, then unpinned

The window is as long as the block memory allows (`data.store.memory_mib`). The order has 256 lanes, which may all reach a new
block at once: 64 MiB by default, so the window should hold several times that.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pretrain.data.source import Source

Item = dict[str, Any]
LONGEST = 32_768  # sequences in the window; bounds it for a corpus that fits into memory, whose order is endless
STRIDE = 8  # items added for each one removed, so that the first does not wait for a full window


def fetch_ahead(sources: Sequence[Source]) -> Callable[[Iterator[Item]], Iterator[Item]]:
    """Pass items (int64 arrays `source` and `sequence`, each (B,)) on in order, their blocks pinned until the next item.

    A no-op for sources on local disks.
    """
    remote = [number for number, source in enumerate(sources) if source.memory]
    memories = {source.memory for source in sources if source.memory}
    if not remote:
        return lambda items: items

    def ahead(items: Iterator[Item]) -> Iterator[Item]:
        window: deque[tuple[Item, list[Any]]] = deque()
        sequences = 0
        try:
            while True:
                for _ in range(STRIDE):
                    full = sequences >= LONGEST or not all(memory.has_room for memory in memories)
                    item = None if full and window else next(items, None)
                    if item is None:
                        break
                    window.append((item, _pin(item)))
                    sequences += len(item["sequence"])
                if not window:
                    return
                yield window[0][0]
                item, pinned = window.popleft()
                sequences -= len(item["sequence"])
                _unpin(pinned)
        finally:
            for _, pinned in window:
                _unpin(pinned)

    def _pin(item: Item) -> list[Any]:
        chosen = [(sources[number], item["sequence"][item["source"] == number]) for number in remote]
        return [(source, source.pin(sequences)) for source, sequences in chosen if len(sequences)]

    def _unpin(pinned: list[Any]) -> None:
        for source, places in pinned:
            source.unpin(places)

    return ahead
