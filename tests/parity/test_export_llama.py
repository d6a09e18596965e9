"""Exported folders against transformers, with Llama for an example: shards, types, memory, and what is left on disk."""

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from pretrain.convert import export_hf as hf
from pretrain.convert.export_hf import export_hf
from pretrain.convert.families.llama_table import LLAMA
from pretrain.convert.verify import logits as proof
from pretrain.errors import DataError, ExportError, UserError
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import decoder_of, memory_source, small_model

SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "one head for each": {"n_kv_heads": 4},
    "multi-query, another theta": {"n_kv_heads": 1, "rope_theta": 500_000.0},
    "tied": {"tie_embeddings": True},
    "more rows than pieces": {"vocab_size": 1_013, "d_ff": 37},
    "large weights": {"init_std": 0.3, "norm_eps": 1e-6},
    "the formula as attention": {"attention": "reference", "n_layers": 3},
}


def load(folder: Path, **options: Any) -> LlamaForCausalLM:
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(loading.values()), loading
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_equal_transformers(shape: dict[str, Any], sentencepiece_model: Path, tmp_path: Path) -> None:
    source = memory_source(sentencepiece_model, small_model(**shape))
    report = export_hf(source, tmp_path / "out")
    tokens_BT = torch.randint(source.config.model.vocab_size, (3, 64), generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        ours, theirs = decoder_of(source)(tokens_BT), load(tmp_path / "out")(tokens_BT).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert report.logits.max_abs_difference <= report.logits.bound
    assert report.logits.positions == 2 * 128
    assert report.parameters == sum(tensor.numel() for tensor in source.tensors.values())


def test_a_large_folder_is_proved_without_a_whole_model_in_memory(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of modules that hold their weights only while they run are those of the model as a whole."""
    monkeypatch.setattr(proof, "LOADED_BYTES", 0)
    monkeypatch.setattr(proof, "_loaded_logits", None)
    source = memory_source(sentencepiece_model, small_model(tie_embeddings=True, init_std=0.3))
    report = export_hf(source, tmp_path / "out", max_shard_bytes=100_000)
    assert report.logits.max_abs_difference <= report.logits.bound
    tokens_BT = torch.arange(40)[None]
    with torch.inference_mode():
        whole = load(tmp_path / "out")(tokens_BT).logits
    assert torch.equal(proof.their_logits(tmp_path / "out", tokens_BT), whole)
    assert torch.equal(proof.our_logits(source, tokens_BT, torch.float32), decoder_of(source)(tokens_BT))


@pytest.mark.parametrize("tied", [False, True])
def test_shards_hold_every_tensor_once_and_stay_below_the_limit(
    tied: bool, sentencepiece_model: Path, tmp_path: Path
) -> None:
    source = memory_source(sentencepiece_model, small_model(tie_embeddings=tied))
    report = export_hf(source, tmp_path / "out", max_shard_bytes=100_000)
    names: list[str] = []
    for file in report.weight_files:
        with safe_open(tmp_path / "out" / file, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            keys = list(shard.keys())
            size = sum(shard.get_tensor(key).nbytes for key in keys)
        assert size <= 100_000 or len(keys) == 1
        names += keys
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(report.weight_files) > 3
    assert sorted(names) == sorted(index["weight_map"])
    assert sorted(names) == sorted(stored.name for stored in LLAMA.tensors(source.config.model))
    assert index["metadata"]["total_size"] == report.weight_bytes
    assert ("lm_head.weight" in names) is not tied


def test_bf16_is_stored_as_such_and_proved_on_the_rounded_weights(sentencepiece_model: Path, tmp_path: Path) -> None:
    source = memory_source(sentencepiece_model)
    report = export_hf(source, tmp_path / "out", dtype="bf16")
    assert report.weight_bytes == 2 * report.parameters
    model = load(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    tokens_BT = torch.arange(50)[None]
    with torch.inference_mode():
        ours = decoder_of(source).to(torch.bfloat16)(tokens_BT)
        assert torch.equal(model(tokens_BT).logits, ours)


def test_the_context_is_the_length_that_was_trained(sentencepiece_model: Path, tmp_path: Path) -> None:
    export_hf(memory_source(sentencepiece_model, seq_len=96), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 96
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 96


def test_nothing_is_printed_and_no_connection_is_made(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    export_hf(memory_source(sentencepiece_model), tmp_path / "out")
    assert asked == []
    assert capfd.readouterr() == ("", "")


WRONG_EPSILON = replace(LLAMA, to_json=lambda model, context: LLAMA.to_json(model, context) | {"rms_norm_eps": 1e-3})


def test_a_weight_that_is_not_finite_is_refused_and_nothing_is_left(sentencepiece_model: Path, tmp_path: Path) -> None:
    source = memory_source(sentencepiece_model)
    source.tensors["blocks.0.attention.output.weight"][0, 0] = float("nan")
    with pytest.raises(ExportError, match=r"blocks\.0\.attention\.output\.weight: 1 of 4096"):
        export_hf(source, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_output_that_exists_is_refused_before_any_weight_is_read(sentencepiece_model: Path, tmp_path: Path) -> None:
    source = memory_source(sentencepiece_model)
    with pytest.raises(UserError, match="exists") as caught:
        export_hf(source, tmp_path)
    assert "--overwrite" in str(caught.value)
    assert source.reads == []


def test_overwrite_replaces_an_earlier_export_only(sentencepiece_model: Path, tmp_path: Path) -> None:
    source, out = memory_source(sentencepiece_model), tmp_path / "out"
    export_hf(source, out, max_shard_bytes=100_000)
    export_hf(source, out, overwrite=True)
    assert not (out / "model.safetensors.index.json").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        export_hf(source, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_a_failed_overwrite_keeps_the_earlier_export(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = memory_source(sentencepiece_model), tmp_path / "out"
    export_hf(source, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.setattr(hf, "choose_family", lambda _: WRONG_EPSILON)
    with pytest.raises(ExportError):
        export_hf(source, out, overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_does_not_load_as_users_load_it_is_not_published(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tensors are right and so are its logits, but `from_pretrained` would not take it."""
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    mistaken = replace(LLAMA, to_json=lambda model, context: LLAMA.to_json(model, context) | quantized)
    monkeypatch.setattr(hf, "choose_family", lambda _: mistaken)
    with pytest.raises(ExportError, match="transformers cannot load the exported folder"):
        export_hf(memory_source(sentencepiece_model), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleared(sentencepiece_model: Path, tmp_path: Path) -> None:
    left = tmp_path / f".out.staging-{os.getpid()}"
    left.mkdir()
    (left / "model-00001-of-00009.safetensors").write_text("half")
    export_hf(memory_source(sentencepiece_model), tmp_path / "out")
    assert not (tmp_path / "out" / "model-00001-of-00009.safetensors").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_model_that_no_architecture_holds_is_refused(sentencepiece_model: Path, tmp_path: Path) -> None:
    source = memory_source(sentencepiece_model, small_model(norm="layernorm", positions="learned"))
    with pytest.raises(UserError, match=r"(?s)no stock architecture.*gpt2.*swiglu"):
        export_hf(source, tmp_path / "out")


def test_without_a_tokenizer_the_message_says_how_to_name_one(sentencepiece_model: Path, tmp_path: Path) -> None:
    source = memory_source(None)
    with pytest.raises(UserError, match="--tokenizer"):
        export_hf(source, tmp_path / "out")
    export_hf(source, tmp_path / "out", tokenizer=sentencepiece_model)


def test_a_tokenizer_with_more_pieces_than_rows_is_refused(sentencepiece_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1009 tokens, the model only 1008 embedding rows"):
        export_hf(memory_source(sentencepiece_model, small_model(vocab_size=1_008)), tmp_path / "out")


def test_an_unknown_dtype_is_refused(sentencepiece_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype=fp8 is not one of fp32, bf16"):
        export_hf(memory_source(sentencepiece_model), tmp_path / "out", dtype="fp8")


def test_without_transformers_the_message_says_what_to_install(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'pretrain-toolkit\[export\]'"):
        export_hf(memory_source(sentencepiece_model), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_card_tells_shape_steps_and_figures(sentencepiece_model: Path, tmp_path: Path) -> None:
    source = memory_source(sentencepiece_model)
    source.config = replace(source.config, batch=replace(source.config.batch, global_batch_size=10))
    report = export_hf(source, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "7 optimizer steps, 12,345 tokens" in card
    assert f"{report.parameters:,} parameters" in card
    assert f"{report.tokenizer.strings} strings" in card
    assert "{" not in card
