"""Receipt of a finished task: `receipt.json` in its folder, from which the manifest is built.

Deterministic: the same task gives the same receipt, on any machine and at any time.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.shards.format import index_name
from pretrain.shards.table import ShardEntry
from tokenizer.corpus.rejection_log import RejectionLog

RECEIPT_NAME = "receipt.json"


@dataclass(frozen=True)
class Receipt:
    """Counts and shards of one task. Its fields are the keys of receipt.json.

    `job` is `WorkFolder.digest`. `shards` are named by their number in the task; a task without usable documents has none.
    `index_sha256` holds a hash (hex) of the index of each. `documents` counts written documents, `seen` also those left
    out. `tokens` and the counts after it are the manifest's, for this task alone.
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
    problems: RejectionLog = field(default_factory=RejectionLog, compare=False)

    @property
    def files(self) -> dict[str, int | None]:
        """File names and sizes in bytes; None for an index, whose size is not recorded."""
        sizes: dict[str, int | None] = {shard.name: shard.bytes for shard in self.shards}
        return sizes | {index_name(shard.name): None for shard in self.shards}

    def to_json(self) -> str:
        """The text of receipt.json: the same bytes for the same receipt."""
        document = {**vars(self), "shards": [asdict(shard) for shard in self.shards]}
        document["problems"] = self.problems.to_json()
        return json.dumps(document, indent=1) + "\n"


def parse_receipt(data: bytes) -> Receipt:
    """Inverse of `Receipt.to_json`. Raises ValueError if `data` is not a receipt."""
    try:
        document: dict[str, Any] = json.loads(data)
        shards = tuple(ShardEntry(**shard) for shard in document.pop("shards"))
        problems = RejectionLog.from_json(document.pop("problems"))
        hashes = tuple(document.pop("index_sha256"))
        return Receipt(**document, shards=shards, index_sha256=hashes, problems=problems)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a receipt: {error}") from None


def hash_indexes(folder: Path, shards: tuple[ShardEntry, ...]) -> tuple[str, ...]:
    """SHA-256 (hex) of the index of each shard."""
    return tuple(hashlib.sha256((folder / index_name(shard.name)).read_bytes()).hexdigest() for shard in shards)
