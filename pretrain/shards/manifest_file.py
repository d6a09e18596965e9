"""Reading and writing `manifest.json` and `shards.npy`. A file is not used before its checksum matches."""

import hashlib
import json
import typing
from pathlib import Path
from typing import Any

from pretrain.errors import DataError
from pretrain.shards.manifest import FORMAT, MANIFEST_NAME, Manifest, json_digest
from pretrain.shards.manifest_rules import check_manifest, check_table_file, raise_problems, show
from pretrain.shards.table import TABLE_NAME, parse_table, table_bytes, table_file
from pretrain.storage.files import publish_file
from pretrain.storage.store import LocalStore, Store

LARGEST_MANIFEST = 1 << 20  # bytes; about 800 without reasons for left out documents


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit `manifest` to `folder` durably: the table, then `manifest.json`, each atomically.

    Raises DataError if it would not be readable again.
    """
    check_manifest(manifest, where="the new manifest")
    for name, data in ((TABLE_NAME, table_file(manifest.shards)), (MANIFEST_NAME, manifest_text(manifest).encode())):
        # Durable before the next: a manifest without its table must not survive a power cut.
        publish_file(folder / name, data)


def manifest_text(manifest: Manifest) -> str:
    """The JSON document: one field a line, and the checksum last."""
    table = {
        "file": TABLE_NAME,
        "rows": len(manifest.shards),
        "sha256": hashlib.sha256(table_file(manifest.shards)).hexdigest(),
    }
    document = {**vars(manifest), "shards": table}
    document["checksum"] = json_digest(document)
    return (
        "{\n " + ",\n ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items()) + "\n}\n"
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder: see `load_manifest`."""
    return load_manifest(LocalStore(folder))


def load_manifest(store: Store) -> Manifest:
    """The manifest of a corpus on a disk or in a store, with every value checked.

    Raises DataError unless it is complete and unchanged. Nothing is allocated by a size that a file claims.
    """
    if isinstance(store, LocalStore):
        _refuse_incomplete(store.folder)
    where, table_where = f"{store.address}/{MANIFEST_NAME}", f"{store.address}/{TABLE_NAME}"
    document = store.read_file(MANIFEST_NAME, LARGEST_MANIFEST, lambda data: _parse_document(data, where))
    rows, sha256 = document["shards"]["rows"], document["shards"]["sha256"]
    shards = store.read_file(TABLE_NAME, table_bytes(rows), lambda data: parse_table(data, rows, sha256, table_where))
    manifest = Manifest(**{**document, "shards": shards})
    check_manifest(manifest, where=where)
    return manifest


def _refuse_incomplete(folder: Path) -> None:
    if not folder.exists():
        raise DataError(
            f"{folder}: no such folder of shards", hint="check the path; `pretrain tokenizer encode` makes one"
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: a tokenized corpus is a folder, and this is a file")
    if not (folder / MANIFEST_NAME).exists():
        raise DataError(
            f"{folder}: no {MANIFEST_NAME} in it; it is written last, so the shards are missing or incomplete",
            hint="run `pretrain tokenizer encode` with this folder as --output (again)",
        )


def _parse_document(data: bytes, where: str) -> dict[str, Any]:
    """Fields of `Manifest`, with types and checksum checked; `shards` describes the table's file."""
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_int=_integer, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON document: {error}", hint="encode the corpus again") from None
    if not isinstance(document, dict):
        raise DataError(f"{where}: must hold a JSON object, found {type(document).__name__}")
    # The format comes first: another format may have other fields.
    if document.get("format") != FORMAT:
        raise DataError(
            f"{where}: format={show(document.get('format'))} is not known; this version reads {FORMAT!r}",
            hint="encode the corpus again, or install the version that wrote it",
        )
    checksum = document.pop("checksum", None)
    if checksum != json_digest(document):
        raise DataError(
            f"{where}: corrupt: its values do not match its checksum={show(checksum)}",
            hint="copy the folder again, or encode the corpus again; do not edit a manifest",
        )
    _refuse_wrong_fields({**typing.get_type_hints(Manifest), "shards": dict}, document, where)
    _refuse_wrong_fields({"file": str, "rows": int, "sha256": str}, document["shards"], f"{where}: shards")
    check_table_file(**document["shards"], where=where)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name is given twice in one object")
    return document


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"{digits[:20]}… is an integer of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _refuse_wrong_fields(expected: dict[str, Any], document: dict[str, Any], where: str) -> None:
    """Raise DataError unless a JSON object has exactly these fields, each of exactly its type."""
    problems = [f"{name} is missing" for name in expected if name not in document]
    problems += [f"{show(name)} is not a field of {FORMAT}" for name in document if name not in expected]
    for name in [name for name in expected if name in document]:
        value, wanted = document[name], typing.get_origin(expected[name]) or expected[name]
        counts = value.values() if isinstance(value, dict) and typing.get_args(expected[name]) else ()
        if type(value) is not wanted or any(type(count) is not int for count in counts):  # isinstance: True is an int
            problems.append(f"{name}={show(value)} must be of type {wanted.__name__}")
    raise_problems(problems, where)
