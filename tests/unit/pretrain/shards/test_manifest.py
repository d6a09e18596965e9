import dataclasses
import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import fsspec
import pytest

from pretrain.errors import DataError
from pretrain.shards.manifest import Manifest, fingerprint, token_dtype
from pretrain.shards.manifest_file import load_manifest, manifest_text, read_manifest, write_manifest
from pretrain.shards.table import MOST_SHARDS, ShardTable, table_file
from pretrain.storage.files import temporary_name
from pretrain.storage.store import open_store
from tests.support.manifests import ENTRY, MANIFEST, PACKED, changed, read_text, sealed
from tests.support.stores import memory_address_fixture as memory_address_fixture
from tests.support.stores import no_waits_fixture as no_waits_fixture
from tests.support.stores import upload


@pytest.mark.parametrize("manifest", [MANIFEST, PACKED], ids=lambda manifest: manifest.layout)
def test_what_is_written_is_read(tmp_path: Path, manifest: Manifest) -> None:
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "shards.npy"}
    assert (
        hashlib.sha256((tmp_path / "shards.npy").read_bytes()).hexdigest() in (tmp_path / "manifest.json").read_text()
    )


def test_the_manifest_is_small_whatever_the_number_of_shards(tmp_path: Path) -> None:
    entries = [dataclasses.replace(ENTRY, name=f"shard-{number:06d}.tar") for number in range(5_000)]
    many = dataclasses.replace(MANIFEST, shards=ShardTable.of(entries), tokens=150_000, documents=20_000)
    write_manifest(tmp_path, many)
    assert (tmp_path / "manifest.json").stat().st_size < 1_000
    assert read_manifest(tmp_path) == many


def test_the_table_is_in_place_before_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()  # nothing can be renamed to it
    with pytest.raises(IsADirectoryError):
        write_manifest(tmp_path, MANIFEST)
    assert (tmp_path / "shards.npy").read_bytes() == table_file(MANIFEST.shards)


def test_each_file_is_on_the_disk_before_it_gets_its_name_and_the_table_before_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, set[str]]] = []
    fsync = os.fsync
    table, manifest = (temporary_name(tmp_path / name).name for name in ("shards.npy", "manifest.json"))

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name, {name.name for name in tmp_path.iterdir()}))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_manifest(tmp_path, MANIFEST)
    assert synced == [
        (table, {table}),
        (tmp_path.name, {"shards.npy"}),
        (manifest, {"shards.npy", manifest}),
        (tmp_path.name, {"shards.npy", "manifest.json"}),
    ]


def test_a_killed_replacement_is_no_mixture_of_two_corpora(tmp_path: Path) -> None:
    write_manifest(tmp_path, PACKED)
    others = ShardTable.of(dataclasses.replace(entry, sha256="d" * 64) for entry in PACKED.shards)
    (tmp_path / "shards.npy").write_bytes(table_file(others))
    with pytest.raises(DataError, match=r"shards\.npy: corrupt: its sha256 is not the one in the manifest"):
        read_manifest(tmp_path)


def test_stored_targets_are_the_shards_whatever_can_be_trained_on() -> None:
    assert (MANIFEST.stored_targets, MANIFEST.tokens) == (30, 30)
    assert (PACKED.stored_targets, PACKED.tokens) == (32, 24)


def test_an_unusable_manifest_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tokens=31 but its shards hold 30"):
        write_manifest(tmp_path, dataclasses.replace(MANIFEST, tokens=31))
    assert not list(tmp_path.iterdir())


def test_missing_folder_and_missing_manifest_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as caught:
        read_manifest(tmp_path / "nowhere")
    assert "pretrain tokenizer encode" in str(caught.value)
    with pytest.raises(DataError, match=r"no manifest\.json") as caught:
        read_manifest(tmp_path)
    assert "pretrain tokenizer encode" in str(caught.value)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="this is a file"):
        read_manifest(tmp_path / "file")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_manifest_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "manifest.json"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "shards.npy"])
def test_a_file_larger_than_it_can_be_is_refused_without_reading_it(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path, MANIFEST)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"{name}: 1099511627776 bytes or more, where at most \d+ are expected"):
        read_manifest(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_claimed_number_of_shards_is_never_allocated(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    table = {"file": "shards.npy", "rows": MOST_SHARDS, "sha256": "a" * 64}
    (tmp_path / "manifest.json").write_bytes(sealed(changed(shards=table)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"shards\.npy: 256 bytes, and a table of 1000000 shards has 64000192"):
        read_manifest(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    (tmp_path / "shards.npy").unlink()
    with pytest.raises(DataError, match=r"shards\.npy: no such file") as caught:
        read_manifest(tmp_path)
    assert "copy the folder again" in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "shards.npy"])
def test_what_came_damaged_from_a_store_is_asked_for_again(
    tmp_path: Path, memory_address: str, no_waits: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_manifest(tmp_path, MANIFEST)
    upload(tmp_path, memory_address)
    store = open_store(memory_address)
    files = store._files
    damaged: list[str] = []
    whole = files.cat_file

    def cat_file(path: str, **options: int) -> bytes:
        data = bytes(whole(path, **options))
        if path.endswith(name) and not damaged:
            damaged.append(path)
            return data[:-10] + b"x" + data[-9:]
        return data

    monkeypatch.setattr(files, "cat_file", cat_file)
    assert load_manifest(store) == MANIFEST
    assert damaged
    fsspec.filesystem("memory").rm(f"{memory_address}/{name}")
    with pytest.raises(DataError, match=name):
        load_manifest(store)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"\xff{}", "can't decode"),
        (b"", "Expecting value"),
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b'{"tokens": 1, "tokens": 1}', "given twice"),
        (b'{"tokens": NaN}', "NaN"),
        (b'{"tokens": -Infinity}', "-Infinity"),
        (b'{"tokens": ' + b"9" * 4_000 + b"}", "an integer of 4000 digits"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_broken_json_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=r"manifest\.json: not a JSON document") as caught:
        read_text(tmp_path, content)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found list"):
        read_text(tmp_path, "[1]")


def test_an_older_format_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"format='pretrain-shards/1' is not known; .* reads 'pretrain-shards/2'"
    ) as caught:
        read_text(tmp_path, '{"format": "pretrain-shards/1"}')
    assert "encode the corpus again" in str(caught.value)


@pytest.mark.parametrize("manifest", [MANIFEST, PACKED], ids=lambda manifest: manifest.layout)
@pytest.mark.parametrize("name", ["manifest.json", "shards.npy"])
def test_any_changed_byte_is_found_and_its_file_named(tmp_path: Path, name: str, manifest: Manifest) -> None:
    write_manifest(tmp_path, manifest)
    path = tmp_path / name
    data = path.read_bytes()
    for place in range(len(data)):
        for change in (0x01, 0x02, 0x10, 0x20, 0x80):
            damaged = bytearray(data)
            damaged[place] ^= change
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=f"^{path}"):
                read_manifest(tmp_path)


@pytest.mark.parametrize("manifest", [MANIFEST, PACKED], ids=lambda manifest: manifest.layout)
def test_a_cut_or_longer_table_is_found(tmp_path: Path, manifest: Manifest) -> None:
    write_manifest(tmp_path, manifest)
    path = tmp_path / "shards.npy"
    data = path.read_bytes()
    for other in (*(data[:stop] for stop in range(len(data))), data + b"\0", data + data, b"\0" + data):
        path.write_bytes(other)
        with pytest.raises(DataError, match=f"^{path}: {len(other)} bytes"):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    "place", ['"block_tokens": 16', '"rows": 1', "shards.npy", '"text_bytes": 100', "empty", '"sha256": "']
)
def test_a_changed_value_is_damage(tmp_path: Path, place: str) -> None:
    text = manifest_text(MANIFEST)
    assert text.count(place) == 1
    other = {"0": "1", "1": "2", ".npy": ".npz", "pty": "pti", ': "': ': "0'}
    changed_place = next(place.replace(old, new) for old, new in other.items() if old in place)
    with pytest.raises(DataError, match=r"manifest\.json: corrupt: its values do not match its checksum") as caught:
        read_text(tmp_path, text.replace(place, changed_place))
    assert "copy the folder again" in str(caught.value)


@pytest.mark.parametrize("checksum", ["", "0" * 64, None, 7, "x" * 5_000])
def test_a_wrong_or_missing_checksum_is_damage(tmp_path: Path, checksum: object) -> None:
    document = {**json.loads(manifest_text(MANIFEST)), "checksum": checksum}
    with pytest.raises(DataError, match="corrupt") as caught:
        read_text(tmp_path, json.dumps(document))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    del document["checksum"]
    with pytest.raises(DataError, match="corrupt"):
        read_text(tmp_path, json.dumps(document))


def test_white_space_and_the_order_of_names_do_not_matter(tmp_path: Path) -> None:
    document = json.loads(manifest_text(MANIFEST))
    turned = dict(reversed(document.items()))
    assert read_text(tmp_path, json.dumps(turned, indent=3)) == MANIFEST


def test_fingerprint_follows_the_tokens_and_nothing_else() -> None:
    same = dataclasses.replace(MANIFEST, text_bytes=5, skipped={}, sentencepiece_version="9", shuffle_seed=3)
    assert fingerprint(same) == fingerprint(MANIFEST)
    others = [
        *(
            dataclasses.replace(MANIFEST, shards=ShardTable.of([dataclasses.replace(ENTRY, **changes)]))
            for changes in ({"sha256": "c" * 64}, {"blocks": 1}, {"tokens": 29}, {"documents": 5})
        ),
        PACKED,
        dataclasses.replace(PACKED, shards=ShardTable.of([PACKED.shards[0]])),
        dataclasses.replace(MANIFEST, tokenizer_sha256="c" * 64),
        dataclasses.replace(MANIFEST, block_tokens=32),
        dataclasses.replace(MANIFEST, dtype="<u4"),
        dataclasses.replace(MANIFEST, layout="packed"),
        dataclasses.replace(MANIFEST, packed_seq_len=8),
        dataclasses.replace(MANIFEST, pad_id=3),
        dataclasses.replace(MANIFEST, padding_tokens=3),
    ]
    assert len({fingerprint(manifest) for manifest in [MANIFEST, *others]}) == 14


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_the_smallest_type_that_holds_every_id(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == dtype
