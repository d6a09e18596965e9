"""Values of a manifest, and rows of its table, that break a rule."""

import dataclasses
import json
from pathlib import Path

import pytest

from pretrain.errors import DataError
from pretrain.shards.manifest import Manifest
from pretrain.shards.manifest_file import manifest_text
from pretrain.shards.table import MOST_SHARDS, ShardEntry, ShardTable, table_file
from tests.support.manifests import BINS, ENTRY, MANIFEST, PACKED, changed, read_text, sealed


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
