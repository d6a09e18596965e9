"""Bad directories: each is refused with the exact reason, and nothing of a stranger is run."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.convert.families.choose import choose_family, config_json
from pretrain.convert.files.hf_directory import inside
from pretrain.convert.files.hf_reader import HfSource
from pretrain.convert.files.weight_files import write_weights
from pretrain.convert.import_hf import import_hf
from pretrain.convert.weight_sources import open_weights
from pretrain.errors import DataError, UserError
from tests.support.exportable_models import FULLEST
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import memory_source, small_model

Tensors = dict[str, torch.Tensor]


def make_directory(folder: Path, *, family: str = "llama", max_shard_bytes: int = 1 << 30, **changes: Any) -> Path:
    """An export without a proof and without a tokenizer."""
    source = memory_source(None, small_model(**(FULLEST[family] | changes)))
    model, folder_of = source.config.model, folder
    folder_of.mkdir()
    found = choose_family(model)
    write_weights(source, folder, found.tensors(model), torch.float32, max_shard_bytes)
    (folder / "config.json").write_text(json.dumps(config_json(found, model, 96, "float32", {})))
    return folder


def change(directory: Path, changing: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    changing(tensors)
    save_file(tensors, directory / "model.safetensors")


KEY = "model.layers.1.self_attn.k_proj.weight"
CHANGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing": (lambda tensors: tensors.pop(KEY), rf"missing: {KEY} \(48, 64\)"),
    "surplus": (lambda tensors: tensors.update({"model.more": torch.ones(3)}), r"unknown to llama: model\.more \(3,\)"),
    "transposed": (
        lambda tensors: tensors.update({KEY: tensors[KEY].t().contiguous()}),
        r"is \(64, 48\), config.json says",
    ),
    "flattened": (lambda tensors: tensors.update({KEY: tensors[KEY].flatten()}), r"is \(3072,\), config.json says"),
    "integers": (lambda tensors: tensors.update({KEY: tensors[KEY].to(torch.int8)}), "is stored as I8, not as F32"),
    "fp64": (lambda tensors: tensors.update({KEY: tensors[KEY].double()}), "is stored as F64, not as F32"),
    "another head": (
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}),
        r"lm_head\.weight differs from model\.embed_tokens\.weight, but config\.json has tie_word_embeddings=true",
    ),
}


@pytest.mark.parametrize(("changing", "message"), CHANGES.values(), ids=CHANGES)
def test_tensors_that_do_not_fit_are_refused_before_any_is_read(
    changing: Callable[[Tensors], object], message: str, tmp_path: Path
) -> None:
    directory = make_directory(tmp_path / "theirs")
    change(directory, changing)
    with pytest.raises(DataError, match=message):
        HfSource(directory)


def test_a_copy_of_a_tied_head_is_dropped(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "theirs")
    change(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert "head.weight" not in HfSource(directory).shapes


def test_what_does_not_fit_comes_in_one_error(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "theirs")
    change(directory, lambda tensors: [tensors.pop(name) for name in sorted(tensors)[:9]])
    with pytest.raises(DataError, match=r"(?s)missing: .*missing: .*and 4 more"):
        HfSource(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_and_no_run_is_left(
    value: float, sentencepiece_model: Path, tmp_path: Path
) -> None:
    directory = make_directory(tmp_path / "theirs")
    change(directory, lambda tensors: tensors[KEY].view(-1)[3:5].fill_(value))
    with pytest.raises(DataError, match=rf"{KEY}: 2 of 3072 elements are not finite"):
        import_hf(directory, tmp_path / "deep" / "run", tokenizer=sentencepiece_model)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("family", FULLEST)
def test_each_parameter_is_the_one_that_was_written(family: str, tmp_path: Path) -> None:
    source = memory_source(None, small_model(**FULLEST[family]))
    found = HfSource(make_directory(tmp_path / "theirs", family=family, max_shard_bytes=50_000))
    assert set(found.shapes) == set(source.shapes)
    for name, expected in source.tensors.items():
        assert torch.equal(found.tensor(name), expected), name
        part = torch.empty(5)
        found.read(name, 2, part)
        assert torch.equal(part, expected.view(-1)[2:7])


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = make_directory(tmp_path / "theirs")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    for content in (pickle.dumps(Evil()), b"", b"\x80\x02garbage"):
        (directory / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(DataError, match="is corrupt or holds more than weights"):
            HfSource(directory)
    torch.save(tensors | {"evil": Evil()}, directory / "pytorch_model.bin")
    with pytest.raises(DataError, match="holds more than weights"):
        HfSource(directory)
    assert not (tmp_path / "evil").exists()
    torch.save([1, 2], directory / "pytorch_model.bin")
    with pytest.raises(DataError, match="not a mapping of names to tensors"):
        HfSource(directory)
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    HfSource(directory)


def test_an_index_leads_nowhere_else(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "theirs", max_shard_bytes=50_000)
    index = directory / "model.safetensors.index.json"
    mapping = json.loads(index.read_text())["weight_map"]
    shard = directory / mapping[KEY]
    (tmp_path / "elsewhere.safetensors").write_bytes(shard.read_bytes())

    def refused(file: Any, message: str) -> None:
        index.write_text(json.dumps({"weight_map": mapping | {KEY: file}}))
        with pytest.raises(DataError, match=message):
            HfSource(directory)

    for name in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors"), "..", "", "a\0b"):
        refused(name, "is not a plain file name")
    refused(7, "has no weight_map")
    refused("lost.safetensors", "is missing")
    refused("x" * 300, "is missing")
    (directory / "link.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    refused("link.safetensors", "is a link to .*, outside the directory")
    other = next(file for file in mapping.values() if file != mapping[KEY])
    refused(other, rf"lacks 1 of the tensors that model.safetensors.index.json lists: {KEY}")


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_a_tokenizer_file_that_is_a_link_out_is_not_copied(name: str, tmp_path: Path) -> None:
    """An import copies it into the run, each checkpoint and each export: somebody's private file would be published."""
    directory = make_directory(tmp_path / "theirs")
    (directory / "tokenizer.json").write_text("{}")
    (tmp_path / "private").write_text("a secret")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(tmp_path / "private")
    with pytest.raises(DataError, match=rf"{name} is a link to .*private, outside the directory"):
        import_hf(directory, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    made = make_directory(tmp_path / "made")
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(made.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert HfSource(snapshot).shapes
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "made")
    with pytest.raises(DataError, match=r"config\.json is missing"):  # a folder is no file
        HfSource(snapshot)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "is not a JSON object"),
        ('{"model_type": "bert"}', "model_type='bert' cannot be imported"),
    ],
)
def test_a_config_json_that_is_none_is_refused(content: str, message: str, tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "theirs")
    (directory / "config.json").write_text(content)
    with pytest.raises(DataError, match=message):
        HfSource(directory)


def test_a_directory_without_weights_says_how_they_are_written(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "theirs")
    (directory / "model.safetensors").unlink()
    with pytest.raises(DataError, match="has no weights") as caught:
        HfSource(directory)
    assert "save_pretrained" in str(caught.value)
    with pytest.raises(DataError, match="is not a directory"):
        HfSource(tmp_path / "nothing")
    assert inside(directory, "config.json").is_file()


def test_an_import_wants_a_new_run_and_a_tokenizer(sentencepiece_model: Path, tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "theirs")
    with pytest.raises(UserError, match="has no tokenizer") as caught:
        import_hf(directory, tmp_path / "run")
    assert "--tokenizer" in str(caught.value)
    import_hf(directory, tmp_path / "run", tokenizer=sentencepiece_model)
    with pytest.raises(UserError, match="run exists"):
        import_hf(directory, tmp_path / "run", tokenizer=sentencepiece_model)
    small = make_directory(tmp_path / "small", vocab_size=1_008)
    with pytest.raises(DataError, match="1009 tokens, the model only 1008 embedding rows"):
        import_hf(small, tmp_path / "other", tokenizer=sentencepiece_model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "small", "theirs"]


def test_weights_are_opened_wherever_they_lie(sentencepiece_model: Path, tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "theirs")
    import_hf(directory, tmp_path / "run", tokenizer=sentencepiece_model)
    checkpoint = tmp_path / "run" / "weights" / "step-00000000"
    name = "blocks.0.attention.query.weight"
    first, *others = (open_weights(path).tensor(name) for path in (directory, tmp_path / "run", checkpoint))
    assert all(torch.equal(first, other) for other in others)
    for path, what in ((directory, "a Hugging Face directory"), (checkpoint, "one checkpoint")):
        with pytest.raises(UserError, match=f"step 3: .* is {what}"):
            open_weights(path, 3)
