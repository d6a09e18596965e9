"""Formats of files by their names alone.

.jsonl .ndjson      .parquet      .tar      .csv .tsv: tables, not read      any other name: text
.jsonl.gz .ndjson.gz .json.gz     .txt.gz .md.gz                             .zst, .bz2 and .xz alike
x.jsonl-00000-of-00002  x.parquet.1  x.jsonl.aa (of `split`)                 as without the number or letters
x.jsonl~  x.bak  x.part                                                      copies and halves of files, not read
"""

import re
from pathlib import Path

from tokenizer.corpus.readers.parts import ARCHIVE, COPY, TABLE

_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tar": "tar", ".csv": TABLE, ".tsv": TABLE}
_CODECS = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
# Compressed JSON Lines are often named .json.gz; of an uncompressed .json the content decides.
_COMPRESSED_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "text", ".md": "text"}
_ARCHIVES = frozenset(
    {".tgz", ".tbz", ".txz", ".lz4", ".br", ".z", ".zip", ".7z", ".rar", ".whl", ".arrow", ".feather"}
)
_COPIES = frozenset(
    {".bak", ".orig", ".old", ".tmp", ".temp", ".part", ".partial", ".incomplete", ".crdownload", ".download", ".swp"}
)
# Two letters are `split`'s; other endings of two letters are programs (.py), so only its first parts of binary files.
_SHARD = re.compile(
    r"(.+\.(?:(?:jsonl|ndjson|json|txt|md)(?:\.(?:gz|zstd?|bz2|xz))?|parquet|tar))[-._]\d+(?:[-_.]of[-_.]\d+)?"
    r"|(.+\.(?:jsonl|ndjson|json)(?:\.(?:gz|zstd?|bz2|xz))?)\.[a-z]{2}|(.+\.(?:parquet|tar))\.a[a-z]"
)
_METADATA = re.compile(
    r"(readme|license|licence|citation|notice)(\..*|-.*|_.*)?|state\.json|.*\.(sha256|sha1|md5|crc|idx|sig|asc)"
)
_ALWAYS_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json"})


def format_of(name: str, forced: str | None = None) -> str:
    """Format implied by a file's name, or `forced` with the compression of the name; a key of LEFT_OUT if it is not read."""
    path = Path(name.lower())
    if forced is not None:
        codec = _CODECS.get(path.suffix)
        return f"{forced}.{codec}" if codec and forced in ("jsonl", "text") else forced
    if path.name.endswith("~") or path.suffix in _COPIES:
        return COPY
    shard = _SHARD.fullmatch(path.name)
    if shard is not None and path.suffix not in _CODECS:
        path = Path(next(stem for stem in shard.groups() if stem is not None))
    codec = _CODECS.get(path.suffix)
    if codec is not None:
        kind = _COMPRESSED_KINDS.get(Path(path.stem).suffix)
        return ARCHIVE if kind is None else f"{kind}.{codec}"
    return ARCHIVE if path.suffix in _ARCHIVES else _KINDS.get(path.suffix, "text")


def is_data(name: str, file_format: str) -> bool:
    """Whether a file holds records of a data set, so that a README beside it describes them."""
    return file_format.partition(".")[0] in ("jsonl", "parquet", "tar", TABLE) or name.lower().endswith(".arrow")


def is_metadata(name: str, *, beside_data: bool) -> bool:
    """Whether a file describes a data set rather than being a text of it; a README only beside data."""
    lower = Path(name).name.lower()
    return lower in _ALWAYS_METADATA or (beside_data and _METADATA.fullmatch(lower) is not None)
