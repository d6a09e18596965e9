import dataclasses
import json
from pathlib import Path

import pytest

from pretrain.data.manifest import (
    Manifest,
    ShardEntry,
    fingerprint,
    read_manifest,
    token_dtype,
    write_manifest,
)
from pretrain.errors import DataError

ENTRY = ShardEntry(name="shard-000000.tar", bytes=10_240, sha256="a" * 64, blocks=2, tokens=30, documents=4)
MANIFEST = Manifest(
    format="pretrain-shards/1",
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
    shards=(ENTRY,),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


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


@pytest.mark.parametrize("content", [b"{", b"\xff{}", b"", b"[" * 100_000])
def test_broken_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="not a JSON document"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(DataError, match="found list"):
        read_manifest(tmp_path)


def changed(**changes: object) -> dict[str, object]:
    return json.loads(json.dumps({**dataclasses.asdict(MANIFEST), **changes}))


def shard(**changes: object) -> list[dict[str, object]]:
    return [{**dataclasses.asdict(ENTRY), **changes}]


def without(name: str) -> dict[str, object]:
    document = changed()
    del document[name]
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (changed(format="tokshard/1"), "format='tokshard/1' is not known"),
        (without("eos_id"), "eos_id is missing"),
        (changed(eos=2), "eos is not a field"),
        (changed(vocab_size="1000"), "vocab_size='1000' must be of type int"),
        (changed(vocab_size=True), "vocab_size=True must be of type int"),
        (changed(skipped={"empty": "2"}), "skipped=.* must be of type dict"),
        (changed(skipped={"empty": -2}), "is negative"),
        (changed(shards={}), "shards={} must be of type list"),
        (changed(shards=[]), "shards is empty"),
        (changed(shards=["x"]), r"shards\[0\]: must be an object"),
        (changed(shards=shard(tokens=None)), r"shards\[0\]: tokens=None must be of type int"),
        (changed(shards=shard(name="../shard.tar")), "not a plain file name"),
        (changed(shards=shard(name="/etc/shard.tar")), "not a plain file name"),
        (changed(shards=shard(name="a\\b.tar")), "not a plain file name"),
        (changed(shards=shard(name="..")), "not a plain file name"),
        (changed(shards=shard(name="pipe:cat x.tar")), "not a plain file name"),
        (changed(shards=shard(name="x.tar\n")), "not a plain file name"),
        (changed(shards=shard(sha256="zz")), "sha256='zz'"),
        (changed(shards=shard(blocks=0)), "blocks=0 is not between"),
        (changed(shards=shard(bytes=1 << 62)), "bytes=.* is not between"),
        (changed(shards=shard() * 2, tokens=60, documents=8), "listed twice"),
        (changed(documents=5), "documents=5 but its shards hold 4"),
        (changed(dtype="<f4"), "dtype='<f4'"),
        (changed(vocab_size=70_000), "cannot hold vocab_size=70000"),
        (changed(bos_id=1_000), "bos_id=1000 is not below vocab_size"),
        (changed(eos_id=-1), "eos_id=-1 is negative"),
        (changed(layout="packed"), "layout='packed'"),
        (changed(block_tokens=0), "block_tokens=0"),
        (changed(tokenizer_sha256=""), "tokenizer_sha256=''"),
    ],
)
def test_every_bad_value_is_refused(tmp_path: Path, document: dict[str, object], message: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


def test_fingerprint_follows_the_tokens_and_nothing_else() -> None:
    same = dataclasses.replace(MANIFEST, text_bytes=5, skipped={}, sentencepiece_version="9", shuffle_seed=3)
    assert fingerprint(same) == fingerprint(MANIFEST)
    renamed = dataclasses.replace(MANIFEST, shards=(dataclasses.replace(ENTRY, name="other.tar"),))
    assert fingerprint(renamed) == fingerprint(MANIFEST)
    others = [
        dataclasses.replace(MANIFEST, shards=(dataclasses.replace(ENTRY, sha256="c" * 64),)),
        dataclasses.replace(MANIFEST, tokenizer_sha256="c" * 64),
        dataclasses.replace(MANIFEST, block_tokens=32),
        dataclasses.replace(MANIFEST, dtype="<u4"),
    ]
    assert len({fingerprint(manifest) for manifest in [MANIFEST, *others]}) == 5


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_the_smallest_type_that_holds_every_id(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == dtype
