"""A stage of the stream, between plan and read: blocks of remote sources are on their way before they are needed.

    plan ──► items with source and sequence ──► │ window: held items, in order │ ──► read, then released

The window is as long as the memory for blocks allows (`data.store.memory_mib`). The order has 256 lanes, and all of them may
come to a new block at once: 64 MiB by the defaults, so the window should hold several times that.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pretrain.data.source import Source

Item = dict[str, Any]
LONGEST = 32_768  # sequences in the window: a small corpus fits into memory, and its order has no end
STRIDE = 8  # items that are added for each one that leaves, so that the first need not wait for a whole window


def fetch_ahead(sources: Sequence[Source]) -> Callable[[Iterator[Item]], Iterator[Item]]:
    """Passes items (int64 arrays `source` and `sequence`, each (B,)) on in order; their blocks stay until the next is asked
    for. Sources on local disks need nothing.
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
                    window.append((item, _hold(item)))
                    sequences += len(item["sequence"])
                if not window:
                    return
                yield window[0][0]
                item, held = window.popleft()
                sequences -= len(item["sequence"])
                _release(held)
        finally:
            for _, held in window:
                _release(held)

    def _hold(item: Item) -> list[Any]:
        chosen = [(sources[number], item["sequence"][item["source"] == number]) for number in remote]
        return [(source, source.hold(sequences)) for source, sequences in chosen if len(sequences)]

    def _release(held: list[Any]) -> None:
        for source, places in held:
            source.release(places)

    return ahead
