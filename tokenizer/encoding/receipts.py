"""What a finished task says of itself: `receipt.json` in its folder, from which the manifest is made.

The same task gives the same receipt: nothing in it depends on when, where, or beside which other tasks it ran.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.shards.format import index_name
from pretrain.shards.table import ShardEntry
from tokenizer.corpus.rejection_log import Problems

RECEIPT_NAME = "receipt.json"


@dataclass(frozen=True)
class Receipt:
    """One task. `job` is the digest of what all tasks share (`tokenizer/encoding/work_folder.py`).

    `shards` are named by their number in the task; a task of which nothing can be used has none. `index_sha256` has a hash
    (hex) for each of their indexes. `documents` are those that were written; `seen` counts those left out too. `tokens` and
    the counts after it are the manifest's, for this task alone.
    """

    job: str
    task: int
    seen: int
    documents: int
    text_bytes: int
    tokens: int = 0
    padding_tokens: int = 0
    documents_cut: int = 0
    shards: tuple[ShardEntry, ...] = ()
    index_sha256: tuple[str, ...] = ()
    problems: Problems = field(default_factory=Problems, compare=False)

    @property
    def files(self) -> dict[str, int | None]:
        """Names of its files, and their sizes in bytes; an index is small, and its size not written down."""
        sizes: dict[str, int | None] = {shard.name: shard.bytes for shard in self.shards}
        return sizes | {index_name(shard.name): None for shard in self.shards}

    def to_json(self) -> str:
        """The text of the file: the same bytes for the same receipt."""
        document = {**vars(self), "shards": [asdict(shard) for shard in self.shards]}
        document["problems"] = self.problems.to_json()
        return json.dumps(document, indent=1) + "\n"


def parse_receipt(data: bytes) -> Receipt:
    """The receipt in `data`. Raises ValueError unless it is one that `to_json` wrote."""
    try:
        document: dict[str, Any] = json.loads(data)
        shards = tuple(ShardEntry(**shard) for shard in document.pop("shards"))
        problems = Problems.of_json(document.pop("problems"))
        hashes = tuple(document.pop("index_sha256"))
        return Receipt(**document, shards=shards, index_sha256=hashes, problems=problems)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a receipt: {error}") from None


def index_hashes(folder: Path, shards: tuple[ShardEntry, ...]) -> tuple[str, ...]:
    """SHA-256 (hex) of the index of each shard."""
    return tuple(hashlib.sha256((folder / index_name(shard.name)).read_bytes()).hexdigest() for shard in shards)
