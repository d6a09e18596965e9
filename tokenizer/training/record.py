"""Files that `train` writes beside a model: `training.json`, and the digests of the texts in its sample."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.errors import DataError
from tokenizer.training.sample import DIGEST_BYTES, SourceSample

RECORD_NAME = "training.json"
DIGESTS_NAME = "sample.digests"


def record_of(model: bytes, samples: Sequence[SourceSample], **more: object) -> dict[str, Any]:
    """The content of `training.json`. Deterministic, so without timestamps."""
    import sentencepiece

    return {
        **more,
        "sentencepiece_version": str(sentencepiece.__version__),
        "sha256": hashlib.sha256(model).hexdigest(),
        "sample_bytes": sum(sample.bytes for sample in samples),
        "sample_documents": sum(sample.documents for sample in samples),
        "sample_digests": len(_digests(samples)),
        "sources": {sample.name: _source(sample) for sample in samples},
    }


def record_files(record: Mapping[str, Any], samples: Sequence[SourceSample]) -> dict[str, bytes]:
    """Contents of the two files by name."""
    return {
        DIGESTS_NAME: b"".join(sorted(_digests(samples))),
        RECORD_NAME: (json.dumps(record, indent=1) + "\n").encode(),
    }


def read_record(model: Path, sha256: str) -> tuple[dict[str, Any] | None, set[bytes]]:
    """The record beside a model file and its digests; (None, empty set) if there is no record of this model.

    Raises DataError if the files cannot be read or do not match each other.
    """
    record_path, digests_path = model.parent / RECORD_NAME, model.parent / DIGESTS_NAME
    try:
        record = json.loads(record_path.read_text())
        data = digests_path.read_bytes()
    except FileNotFoundError:
        return None, set()
    except (OSError, ValueError) as error:
        raise DataError(f"{record_path}: cannot be read: {error}") from None
    if not isinstance(record, dict) or record.get("sha256") != sha256:
        return None, set()
    if len(data) != DIGEST_BYTES * record["sample_digests"]:
        raise DataError(
            f"{digests_path}: has {len(data)} bytes, but {RECORD_NAME} counts {record['sample_digests']} texts of "
            f"{DIGEST_BYTES} bytes",
            hint="copy the folder again, or delete both files to report without them",
        )
    return record, {data[i : i + DIGEST_BYTES] for i in range(0, len(data), DIGEST_BYTES)}


def describe_record(record: Mapping[str, Any]) -> dict[str, object]:
    """The part of the record that a report shows."""
    settings = record["settings"]
    return {
        **{f"sample of {name}": describe_sample(source) for name, source in record["sources"].items()},
        "seed": record["seed"],
        "control symbols": " ".join(settings["control_symbols"]),
        "character coverage": settings["character_coverage"],
        "U+2585 left out": record["unknown_signs_left_out"],
        "SentencePiece": record["sentencepiece_version"],
    }


def describe_sample(source: Mapping[str, Any]) -> str:
    """Amounts sampled and read from a source, in one sentence."""
    read = "all of it" if source["whole"] else f"from {source['tasks_read']:,} of {source['tasks']:,} places"
    return (
        f"{source['bytes'] / 1e6:,.1f} MB, {source['documents']:,} documents; "
        f"read {source['bytes_read'] / 1e6:,.1f} MB, {source['documents_read']:,} documents, {read}"
    )


def _source(sample: SourceSample) -> dict[str, Any]:
    names = ("budget", "bytes", "documents", "bytes_read", "documents_read", "tasks", "tasks_read", "whole")
    return {**{name: getattr(sample, name) for name in names}, "held_out_documents": len(sample.held_out)}


def _digests(samples: Sequence[SourceSample]) -> set[bytes]:
    return set().union(*(sample.digests for sample in samples))
