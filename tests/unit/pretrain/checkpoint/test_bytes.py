"""Any changed byte and any truncation of a checkpoint is found and named, and the checkpoint before it is used."""

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.checkpoint import layout
from pretrain.checkpoint.pieces import PieceIndex, piece_key, write_pieces
from pretrain.checkpoint.rng_state import rng_state
from pretrain.config.load import config_text
from pretrain.config.schema import Config
from pretrain.errors import CheckpointError

KINDS = ("fp32", "exp_avg", "exp_avg_sq")
STEP = 200
WEIGHTS = ("rank-00000.safetensors", "rank-00001.safetensors")
FILES = (
    *(layout.MANIFEST, layout.STATE, layout.CONFIG, layout.TOKENIZERS[1]),
    *(*WEIGHTS, "rank-00000.rng.json", "rank-00001.rng.json"),
)


def save(place: Path, step: int, **contents: bytes) -> Path:
    """A checkpoint of two ranks; `contents` replace those of files, with a manifest that matches them."""
    staging = layout.staging_folder(place, step, 1)
    staging.mkdir(parents=True)
    state = {"step": step, "samples": 8 * step, "tokens": 512 * step, "losses": [4.5, 4.25], "world_size": 2}
    files = {
        layout.STATE: layout.json_bytes(state),
        layout.CONFIG: config_text(Config()).encode(),
        layout.TOKENIZERS[1]: bytes(range(256)),
        **{f"rank-{rank:05d}.rng.json": json.dumps(rng_state(torch.device("cpu"))).encode() for rank in (0, 1)},
    }
    entries = []
    for rank, name in enumerate(WEIGHTS):
        names = [piece_key(kind, 20 * rank, f"blocks.{block}.weight") for kind in KINDS for block in (0, 1)]
        entries.append(write_pieces(staging / name, {name: torch.randn(20) for name in names}))
    entries += [layout.write_file(staging / name, data) for name, data in files.items()]
    for name, data in contents.items():
        entries = [entry for entry in entries if entry.name != name]
        entries.append(layout.write_file(staging / name, data))
    return layout.commit(place, step, entries, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoints")
    for step in (100, STEP):
        save(place, step)
    return place


@pytest.fixture(scope="module")
def newest(place: Path) -> Path:
    return place / layout.checkpoint_name(STEP)


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """The file with other content, inside the context."""
    good = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(good)


def flipped(data: bytes, position: int, mask: int) -> bytes:
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def check_found(folder: Path, name: str, data: bytes) -> None:
    """With these bytes, verification fails and names the file, and the older checkpoint is the newest intact one."""
    before = layout.read_manifest(folder)
    with replaced(folder / name, data):
        with suppress(CheckpointError):
            if name == layout.MANIFEST and layout.read_manifest(folder) == before:
                return  # only white space differs
        reasons: list[str] = []
        newest = layout.find_newest(folder.parent, skipped=reasons.append)
        assert newest is not None and newest[1]["step"] == 100, f"{name} with {data[:60]!r}… is taken as intact"
        (reason,) = reasons
        assert str(folder) in reason
        if name != layout.MANIFEST:
            assert f"{folder / name} " in reason


def test_the_files_are_all_that_a_checkpoint_has(newest: Path) -> None:
    assert sorted(path.name for path in newest.iterdir()) == sorted(FILES)
    assert layout.verify(newest)["samples"] == 8 * STEP


def check_manifest(folder: Path, data: bytes) -> None:
    """Refused by the parser, or if it still parses, by verification."""
    try:
        layout.parse_manifest(data, folder.name, str(folder))
    except CheckpointError as error:
        assert str(folder) in error.message
    else:
        check_found(folder, layout.MANIFEST, data)


def test_every_byte_of_the_manifest(newest: Path) -> None:
    data = (newest / layout.MANIFEST).read_bytes()
    for position in range(len(data)):
        for mask in (0x01, 0x10, 0x20, 0x80):
            check_manifest(newest, flipped(data, position, mask))


def test_every_length_of_the_manifest(newest: Path) -> None:
    data = (newest / layout.MANIFEST).read_bytes()
    for length in range(len(data)):
        check_manifest(newest, data[:length])


@pytest.mark.parametrize("name", FILES[1:])
def test_structural_bytes_of_every_file(name: str, newest: Path) -> None:
    """First and last bytes, length and end of a header, and truncations near them."""
    data = (newest / name).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little") if name in WEIGHTS else 0
    places = {*range(16), *range(header - 8, header + 8), len(data) // 2, *range(len(data) - 9, len(data))}
    for position in sorted(places & set(range(len(data)))):
        check_found(newest, name, flipped(data, position, 0x01))
        check_found(newest, name, flipped(data, position, 0x80))
        check_found(newest, name, data[:position])
    check_found(newest, name, data + b"\0")
    check_found(newest, name, data + data)
    check_found(newest, name, bytes(len(data)))


@settings(max_examples=300)
@given(data=st.data())
def test_any_byte_of_any_file(newest: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = (newest / name).read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, 64))
    new = data.draw(
        st.one_of(
            st.integers(1, 255).map(lambda mask: flipped(content, position, mask)),
            st.just(content[:position]),
            st.just(content[:position] + content[position + length :]),
            st.just(content[:position] + bytes(length) + content[position + length :]),
            st.binary(min_size=1, max_size=64).map(lambda more: content[:position] + more + content[position:]),
        )
    )
    if new != content:
        check_found(newest, name, new)


def test_swapped_files_are_found(newest: Path) -> None:
    one, other = (newest / name for name in WEIGHTS)
    assert one.stat().st_size == other.stat().st_size
    check_found(newest, one.name, other.read_bytes())


def test_the_manifest_of_another_step_is_found(place: Path, newest: Path) -> None:
    other = place / layout.checkpoint_name(100)
    check_found(newest, layout.MANIFEST, (other / layout.MANIFEST).read_bytes())
    check_found(newest, layout.STATE, (other / layout.STATE).read_bytes())


def test_a_checkpoint_under_the_name_of_another_step_is_found(tmp_path: Path) -> None:
    folder = save(tmp_path, 100).rename(tmp_path / layout.checkpoint_name(STEP))
    with pytest.raises(CheckpointError, match="the manifest is of step 100"):
        layout.verify(folder)


@pytest.mark.parametrize("state", [{"step": 100}, {}, {"step": str(STEP)}])
def test_a_state_that_is_not_of_this_step_is_found(state: dict[str, Any], tmp_path: Path) -> None:
    folder = save(tmp_path, STEP, **{layout.STATE: layout.json_bytes(state)})
    with pytest.raises(CheckpointError, match=r"state\.json is not the state of step-00000200"):
        layout.verify(folder)


def test_state_and_config_are_hashed_even_without_hashes(newest: Path) -> None:
    """Ranks read them before rank 0 has hashed the large files."""
    data = (newest / layout.STATE).read_bytes()
    position = data.index(b'"samples"') + 2
    for name in (layout.STATE, layout.CONFIG):
        with replaced(newest / name, flipped((newest / name).read_bytes(), position, 0x02)):
            found = layout.find_newest(newest.parent, hashes=False)
            assert found is not None and found[1]["step"] == 100
    with replaced(newest / WEIGHTS[0], bytes((newest / WEIGHTS[0]).stat().st_size)):
        assert layout.verify(newest, hashes=False)["step"] == STEP


Change = Callable[[dict[str, Any]], object]
MANIFESTS: dict[str, tuple[Change, str]] = {
    "a file twice": (lambda m: m["files"].append(m["files"][0]), "lists a file twice"),
    "a size that is text": (lambda m: m["files"][0].update(bytes="7"), "without a size or a sha256"),
    "a size with a fraction": (lambda m: m["files"][0].update(bytes=float(m["files"][0]["bytes"])), "without a size"),
    "no sha256": (lambda m: m["files"][0].update(sha256=None), "without a size or a sha256"),
    "a name that is a number": (lambda m: m["files"][0].update(name=7), "not a complete checkpoint"),
    "a name with a zero byte": (lambda m: m["files"][0].update(name="a\0b"), "is missing"),
    "a name that is too long": (lambda m: m["files"][0].update(name="a" * 5_000), "name too long"),
    "a step that is text": (lambda m: m.update(step=str(STEP)), "not a complete checkpoint"),
    "files that are a number": (lambda m: m.update(files=3), "not a complete checkpoint"),
    "files that are text": (lambda m: m.update(files="abc"), "not a complete checkpoint"),
}


@pytest.mark.parametrize("change", sorted(MANIFESTS))
def test_invalid_manifests_are_refused(change: str, newest: Path) -> None:
    manifest = json.loads((newest / layout.MANIFEST).read_bytes())
    act, message = MANIFESTS[change]
    act(manifest)
    with replaced(newest / layout.MANIFEST, json.dumps(manifest).encode()):
        with pytest.raises(CheckpointError, match=message):
            layout.verify(newest)


BOMBS = {
    "nested lists": b"[" * 3_000_000,
    "nested objects": b'{"a":' * 1_000_000,
    "a number of a million digits": b"1" * 1_000_000,
    "a number": b"3",
    "no text": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_malicious_json_is_refused(bomb: str, newest: Path, tmp_path: Path) -> None:
    """As the manifest, and as a state with a matching hash."""
    with replaced(newest / layout.MANIFEST, BOMBS[bomb]):
        with pytest.raises(CheckpointError, match="not a complete checkpoint"):
            layout.verify(newest)
    folder = save(tmp_path, STEP, **{layout.STATE: BOMBS[bomb]})
    with pytest.raises(CheckpointError, match=r"state\.json is not"):
        layout.verify(folder)


@contextmanager
def little_memory(more_bytes: int) -> Iterator[None]:
    """Limit the address space to that in use and `more_bytes`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)


def test_a_manifest_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path, STEP)
    os.truncate(folder / layout.MANIFEST, 1 << 34)  # a hole: it costs no disk
    with little_memory(512 << 20), pytest.raises(CheckpointError, match=r"manifest\.json is longer than"):
        layout.verify(folder)


@pytest.mark.parametrize("name", [layout.STATE, layout.CONFIG])
def test_an_oversized_small_file_is_refused_even_with_a_matching_hash(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path, STEP, **{name: bytes(layout.SMALL_BYTES + 1)})
    with pytest.raises(CheckpointError, match=f"{name} is longer than"):
        layout.verify(folder)


def header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def tensors(**entries: Any) -> bytes:
    return header(json.dumps(entries).encode(), bytes(16))


FLAT = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
KEY = "fp32/0/weight"
PIECES = {
    "nothing": b"",
    "half a length": b"\x08\0\0",
    "a header of 2^60 bytes": (1 << 60).to_bytes(8, "little") + b"{}",
    "a header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "a header longer than the file": (4_000).to_bytes(8, "little") + b"{}",
    "a header of nested lists": header(b"[" * 3_000_000),
    "a header that is a list": header(b"[]"),
    "a header that is no text": header(b"\xff\xfe"),
    "a shape below nothing": tensors(**{KEY: {**FLAT, "shape": [-4]}}),
    "a shape beyond all numbers": tensors(**{KEY: {**FLAT, "shape": [1 << 62]}}),
    "a shape that overflows": tensors(**{KEY: {**FLAT, "shape": [1 << 33, 1 << 33]}}),
    "data behind the end": tensors(**{KEY: {**FLAT, "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    "data that ends before it begins": tensors(**{KEY: {**FLAT, "data_offsets": [16, 0]}}),
    "two tensors in one place": tensors(**{KEY: FLAT, "fp32/4/weight": FLAT}),
    "two dimensions": tensors(**{KEY: {**FLAT, "shape": [2, 2]}}),
    "no dimension": tensors(**{KEY: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}),
    "another type": tensors(**{KEY: {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}),
    "bytes": tensors(**{KEY: {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}}),
    "a key of one word": tensors(weight=FLAT),
    "a key without a place": tensors(**{"fp32/first/weight": FLAT}),
    "a key before the beginning": tensors(**{"fp32/-4/weight": FLAT}),
}


@pytest.mark.parametrize("content", sorted(PIECES))
def test_malicious_files_of_pieces_are_refused(content: str, tmp_path: Path) -> None:
    """Their hashes match the manifest: made by a stranger, not corrupted by a disk."""
    folder = save(tmp_path, STEP, **{WEIGHTS[1]: PIECES[content]})
    layout.verify(folder)
    with (
        little_memory(512 << 20),
        pytest.raises(CheckpointError, match=r"rank-00001\.safetensors is not a (safetensors file|file of pieces): "),
    ):
        PieceIndex(layout.listed_files(folder, ".safetensors"))
