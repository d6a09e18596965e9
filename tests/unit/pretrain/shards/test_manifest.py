import dataclasses
import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import fsspec
import pytest

from pretrain.errors import DataError
from pretrain.shards import manifest as module
from pretrain.shards.manifest import (
    Manifest,
    fingerprint,
    load_manifest,
    manifest_text,
    read_manifest,
    token_dtype,
    write_manifest,
)
from pretrain.shards.table import MOST_SHARDS, ShardEntry, ShardTable, table_file
from pretrain.storage.files import temporary_name
from pretrain.storage.store import open_store
from tests.support.stores import memory_address_fixture as memory_address_fixture
from tests.support.stores import no_waits_fixture as no_waits_fixture
from tests.support.stores import upload

ENTRY = ShardEntry(name="shard-000000.tar", bytes=10_240, sha256="a" * 64, blocks=2, tokens=30, documents=4)
MANIFEST = Manifest(
    format="pretrain-shards/2",
    dtype="<u2",
    vocab_size=1_000,
    bos_id=1,
    eos_id=2,
    tokenizer_sha256="b" * 64,
    sentencepiece_version="0.2.3",
    block_tokens=16,
    layout="stream",
    shuffle_seed=0,
    tokens=30,
    documents=4,
    text_bytes=100,
    skipped={"empty": 2},
    shards=ShardTable.of([ENTRY]),
)
# 2 shards of 2 bins of 8 ids, and one more id; 5 of all ids are padding, and 4 the first of their bin.
BINS = dataclasses.replace(ENTRY, blocks=1, tokens=16)
PACKED = dataclasses.replace(
    MANIFEST,
    layout="packed",
    packed_seq_len=8,
    pad_id=3,
    padding_tokens=5,
    documents_cut=1,
    tokens=33 - 5 - 4,
    documents=8,
    shards=ShardTable.of([BINS, dataclasses.replace(BINS, name="shard-000001.tar")]),
)


def read_text(folder: Path, text: str | bytes, table: bytes | None = None) -> Manifest:
    """What a folder with this manifest.json and this shards.npy (by default that of MANIFEST) holds."""
    (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "shards.npy").write_bytes(table_file(MANIFEST.shards) if table is None else table)
    return read_manifest(folder)


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
    with pytest.raises(DataError, match=r"shards\.npy: damaged: its sha256 is not the manifest's"):
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
    with pytest.raises(DataError, match=r"manifest\.json: damaged: its values do not give its checksum") as caught:
        read_text(tmp_path, text.replace(place, changed_place))
    assert "copy the folder again" in str(caught.value)


@pytest.mark.parametrize("checksum", ["", "0" * 64, None, 7, "x" * 5_000])
def test_a_wrong_or_missing_checksum_is_damage(tmp_path: Path, checksum: object) -> None:
    document = {**json.loads(manifest_text(MANIFEST)), "checksum": checksum}
    with pytest.raises(DataError, match="damaged") as caught:
        read_text(tmp_path, json.dumps(document))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    del document["checksum"]
    with pytest.raises(DataError, match="damaged"):
        read_text(tmp_path, json.dumps(document))


def test_white_space_and_the_order_of_names_do_not_matter(tmp_path: Path) -> None:
    document = json.loads(manifest_text(MANIFEST))
    turned = dict(reversed(document.items()))
    assert read_text(tmp_path, json.dumps(turned, indent=3)) == MANIFEST


def sealed(document: dict[str, object]) -> bytes:
    """As JSON with the checksum that belongs to it, so that its values alone decide."""
    return json.dumps({**document, "checksum": module._digest(document)}).encode()


def changed(base: Manifest = MANIFEST, **changes: object) -> dict[str, object]:
    document = json.loads(manifest_text(base))
    del document["checksum"]
    return {**document, **changes}


def table(**changes: object) -> dict[str, object]:
    return {**changed()["shards"], **changes}


def without(name: str) -> dict[str, object]:
    document = changed()
    del document[name]
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (changed(format="tokshard/1"), "format='tokshard/1' is not known"),
        (changed(format=["x"] * 9_000), "is not known"),
        (without("eos_id"), "eos_id is missing"),
        (without("pad_id"), "pad_id is missing"),
        (changed(eos=2), "'eos' is not a field"),
        (changed(vocab_size="1000"), "vocab_size='1000' must be of type int"),
        (changed(vocab_size="1" * 5_000), "vocab_size='1+\\.\\.\\.1+' must be of type int"),
        (changed(vocab_size=True), "vocab_size=True must be of type int"),
        (changed(vocab_size=1e3), "vocab_size=1000.0 must be of type int"),
        (changed(dtype=2), "dtype=2 must be of type str"),
        (changed(skipped=[]), "skipped=.* must be of type dict"),
        (changed(skipped={"empty": "2"}), "skipped=.* must be of type dict"),
        (changed(skipped={"empty": True}), "skipped=.* must be of type dict"),
        (changed(skipped={"empty": -2}), "is negative"),
        (changed(skipped={"empty": 1 << 62}), "is not below 2\\^62"),
        (changed(text_bytes=1 << 62), "text_bytes=.* is not below 2\\^62"),
        (changed(shards=[]), "shards=\\[\\] must be of type dict"),
        (changed(shards=[dataclasses.asdict(ENTRY)]), "shards=.* must be of type dict"),
        (changed(shards={}), "shards: file is missing; rows is missing; sha256 is missing"),
        (changed(shards=table(bytes=1)), "shards: 'bytes' is not a field"),
        (changed(shards=table(rows="1")), "shards: rows='1' must be of type int"),
        (changed(shards=table(rows=True)), "shards: rows=True must be of type int"),
        (changed(shards=table(rows=-1)), "shards: rows=-1 is not between 0 and 1000000"),
        (changed(shards=table(rows=MOST_SHARDS + 1)), "shards: rows=1000001 is not between 0 and 1000000"),
        (changed(shards=table(file="../shards.npy")), "shards: file='../shards.npy' must be 'shards.npy'"),
        (changed(shards=table(file="x" * 5_000)), "shards: file=.* must be 'shards.npy'"),
        (changed(shards=table(sha256="A" * 64)), "shards: sha256='A+' is not 64 lower-case"),
        (changed(shards=table(sha256=7)), "shards: sha256=7 must be of type str"),
        (changed(tokens=31), "tokens=31 but its shards hold 30"),
        (changed(documents=5), "documents=5 but its shards hold 4"),
        (changed(dtype="<f4"), "dtype='<f4'"),
        (changed(vocab_size=70_000), "cannot hold vocab_size=70000"),
        (changed(vocab_size=(1 << 32) + 1, dtype="<u4"), "cannot hold vocab_size=4294967297"),
        (changed(bos_id=1_000), "bos_id=1000 is not below vocab_size"),
        (changed(eos_id=-1), "eos_id=-1 is negative"),
        (changed(block_tokens=0), "block_tokens=0"),
        (changed(tokenizer_sha256=""), "tokenizer_sha256=''"),
        (changed(layout="sorted"), "layout='sorted' is not one of stream, packed"),
        (changed(packed_seq_len=8), "packed_seq_len=8 must be 0 in layout 'stream'"),
        (changed(pad_id=3), "pad_id=3 must be -1 in layout 'stream'"),
        (changed(padding_tokens=3), "padding_tokens=3 must be 0 in layout 'stream'"),
        (changed(documents_cut=3), "documents_cut=3 must be 0 in layout 'stream'"),
        (changed(PACKED, pad_id=-1), "pad_id=-1 must be an id of its own"),
        (changed(PACKED, pad_id=-2), "pad_id=-2 is negative"),
        (changed(PACKED, pad_id=1), "pad_id=1 must be an id of its own"),
        (changed(PACKED, pad_id=2), "pad_id=2 must be an id of its own"),
        (changed(PACKED, pad_id=1_000), "pad_id=1000 is not below vocab_size"),
        (changed(PACKED, packed_seq_len=0), "packed_seq_len=0 is below 2"),
        (changed(PACKED, packed_seq_len=1), "packed_seq_len=1 is below 2"),
        (changed(PACKED, packed_seq_len=5), "packed_seq_len=5 .* does not divide"),
        (changed(PACKED, packed_seq_len=16), "tokens=24 but 2 bins of 16, with padding_tokens=5, hold 26"),
        (changed(PACKED, padding_tokens=6), "tokens=24 but 4 bins of 8, with padding_tokens=6, hold 23"),
        (changed(PACKED, tokens=0, padding_tokens=29), "tokens=0 but"),
        (changed(PACKED, documents_cut=9), "documents_cut=9 is more than documents=8"),
    ],
)
def test_every_bad_value_is_refused(tmp_path: Path, document: dict[str, object], message: str) -> None:
    shards = PACKED.shards if document.get("layout") == "packed" else MANIFEST.shards
    with pytest.raises(DataError, match=f"manifest.json.*{message}") as caught:
        read_text(tmp_path, sealed(document), table_file(shards))
    assert len(str(caught.value)) < 1_000 + len(str(tmp_path))


def read_shards(folder: Path, *entries: ShardEntry, base: Manifest = MANIFEST, **changes: object) -> Manifest:
    """A folder whose checksums fit these shards."""
    shards = ShardTable.of(entries)
    document = json.loads(manifest_text(dataclasses.replace(base, shards=shards)))
    del document["checksum"]
    return read_text(folder, sealed({**document, **changes}), table_file(shards))


@pytest.mark.parametrize(
    ("changes", "totals", "message"),
    [
        ({"blocks": 0}, {}, "shard-000000.tar: blocks=0 is not between 1 and 2\\^43"),
        ({"blocks": -(1 << 63)}, {}, "blocks=-9223372036854775808 is not between"),
        ({"bytes": 0}, {}, "bytes=0 is not between"),
        ({"bytes": 1 << 62}, {}, "bytes=4611686018427387904 is not between"),
        ({"bytes": 1 << 43}, {}, "bytes=8796093022208 is not between"),
        ({"tokens": 0}, {}, "tokens=0 is not between"),
        ({"tokens": (1 << 63) - 1}, {}, "tokens=9223372036854775807 is not between"),
        ({"documents": -1}, {}, "documents=-1 is not between 0"),
        ({"documents": 1 << 43}, {}, "documents=8796093022208 is not between"),
        ({"tokens": 16}, {"tokens": 16}, "shard-000000.tar: tokens=16 is not what blocks=2 of 16 hold"),
        ({"tokens": 33}, {"tokens": 33}, "tokens=33 is not what blocks=2 of 16 hold"),
        ({}, {"block_tokens": 30}, "tokens=30 is not what blocks=2 of 30 hold"),
        ({}, {"block_tokens": (1 << 62) - 1}, "tokens=30 is not what blocks=2 of"),
        ({}, {"block_tokens": 1 << 63}, "block_tokens=9223372036854775808 is not below 2\\^62"),
        ({}, {"block_tokens": -5}, "block_tokens=-5 is negative"),
    ],
)
def test_every_bad_row_is_refused(
    tmp_path: Path, changes: dict[str, int], totals: dict[str, int], message: str
) -> None:
    assert read_shards(tmp_path, ENTRY) == MANIFEST
    with pytest.raises(DataError, match=f"manifest.json.*{message}") as caught:
        read_shards(tmp_path, dataclasses.replace(ENTRY, **changes), **totals)
    assert len(str(caught.value)) < 1_000 + len(str(tmp_path))


def test_the_row_that_breaks_a_rule_is_named(tmp_path: Path) -> None:
    second = dataclasses.replace(ENTRY, name="shard-000001.tar", tokens=33)
    with pytest.raises(DataError, match=r"manifest\.json: shard-000001\.tar: tokens=33 is not what"):
        read_shards(tmp_path, ENTRY, second, tokens=63, documents=8)


@pytest.mark.parametrize(("tokens", "blocks"), [(16, 1), (17, 2), (32, 2), (1, 1)])
def test_a_last_block_of_any_length_is_read(tmp_path: Path, tokens: int, blocks: int) -> None:
    entry = dataclasses.replace(ENTRY, tokens=tokens, blocks=blocks)
    assert read_shards(tmp_path, entry, tokens=tokens).shards[0] == entry


def test_no_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shards is empty"):
        read_shards(tmp_path, tokens=0, documents=0)


def test_sums_of_the_largest_counts_are_exact(tmp_path: Path) -> None:
    largest = (1 << 43) - 1
    rows = ShardTable.of([dataclasses.replace(ENTRY, bytes=largest, tokens=largest, documents=largest)]).rows
    shards = ShardTable(rows.repeat(MOST_SHARDS))
    assert (shards.tokens.sum(), shards.bytes.sum(), shards.documents.sum()) == (largest * MOST_SHARDS,) * 3


def test_bins_that_end_in_the_middle_of_one_are_refused(tmp_path: Path) -> None:
    second = dataclasses.replace(PACKED.shards[1], tokens=12)
    with pytest.raises(DataError, match=r"packed_seq_len=8 .* does not divide .* all 28"):
        read_shards(tmp_path, BINS, second, base=PACKED)


def test_thousands_of_problems_are_one_short_message(tmp_path: Path) -> None:
    entries = [dataclasses.replace(ENTRY, name=f"shard-{number:06d}.tar", tokens=0) for number in range(5_000)]
    with pytest.raises(DataError, match=r"shard-000019.*5000 problems in all") as caught:
        read_shards(tmp_path, *entries)
    assert len(str(caught.value)) < 5_000


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
