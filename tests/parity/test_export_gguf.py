"""GGUF files: read back with the package `gguf`, and run by llama.cpp where that is installed."""

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import sentencepiece
import torch
from gguf import GGUFReader
from torch import Tensor

from pretrain.convert.gguf import export_gguf as gguf_export
from pretrain.convert.gguf import gguf_check as gguf_proof
from pretrain.convert.gguf import gguf_tensors as gguf_model
from pretrain.convert.gguf.export_gguf import export_gguf
from pretrain.convert.gguf.gguf_tokenizer import without_special_spellings
from pretrain.convert.gguf.llama_cpp import LlamaCppError, ask_llama_cpp, llama_cpp_interpreter
from pretrain.errors import DataError, ExportError, UserError
from tests.support.tokenizers import sentencepiece_model_fixture  # noqa: F401
from tests.support.weight_source import MemorySource, decoder_of, memory_source, small_model
from tokenizer.models.sentencepiece import read_proto
from tokenizer.models.stress_texts import stress_texts

LLAMA_CPP = llama_cpp_interpreter()
needs_llama_cpp = pytest.mark.skipif(LLAMA_CPP is None, reason="llama-cpp-python is not installed")
LAYERS = {"norm": "layernorm", "norm_bias": True, "attention_bias": "all", "ffn": "gelu_tanh", "ffn_bias": True}
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_seq_len": 32}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_seq_len": 32}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied, wide heads": {"tie_embeddings": True, "head_dim": 32, "n_kv_heads": 4},
    "llama, biases, stretched": {"attention_bias": "qkv", "ffn_bias": True, **LLAMA3},
    "qwen3": {"qk_norm": "head", "head_dim": 32, **YARN},
    "olmo2, tied": {"qk_norm": "full", "norm_position": "post", "tie_embeddings": True},
    "gpt2": {"positions": "learned", "n_kv_heads": 4, **LAYERS},
    "gpt2, sinusoids, no biases": {"positions": "sinusoidal", "n_kv_heads": 4, "norm": "layernorm", "ffn": "gelu_tanh"},
    "starcoder2": {**LAYERS},
    "starcoder2, no biases": {"norm": "layernorm", "ffn": "gelu_tanh"},
    "stablelm, tied": {"norm": "layernorm", "rope_fraction": 0.5, "tie_embeddings": True},
}


def source_of(tokenizer: Path | None, name: str = "llama", **changes: Any) -> MemorySource:
    """Weights so large that logits differ from token to token."""
    return memory_source(tokenizer, small_model(**{"init_std": 0.1, **MODELS[name], **changes}))


def values(file: Path) -> dict[str, Tensor]:
    """Every tensor of a file, fp32."""
    return {
        tensor.name: torch.from_numpy(numpy.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        for tensor in GGUFReader(file).tensors
    }


def keys(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


def neighbours_to_halves(rows: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of rotary channels, row by row: where transformers has channel c of a head."""
    width = rows.shape[0] // heads
    places = [2 * c if c < width // 2 else 2 * (c - width // 2) + 1 for c in range(width)]
    return rows[[head * width + place for head in range(heads) for place in places]]


def test_each_matrix_is_the_parameter_in_half_precision(sentencepiece_model: Path, tmp_path: Path) -> None:
    source = source_of(sentencepiece_model)
    found = values(export_gguf(source, tmp_path / "model.gguf").file)
    expected = {
        "token_embd.weight": "embedding.tokens.weight",
        "output_norm.weight": "final_norm.weight",
        "output.weight": "head.weight",
    }
    for block in range(2):
        for theirs, ours in {
            "attn_norm": "attention_norm",
            "attn_q": "attention.query",
            "attn_k": "attention.key",
            "attn_v": "attention.value",
            "attn_output": "attention.output",
            "ffn_norm": "feed_forward_norm",
            "ffn_gate": "feed_forward.gate",
            "ffn_up": "feed_forward.up",
            "ffn_down": "feed_forward.down",
        }.items():
            expected[f"blk.{block}.{theirs}.weight"] = f"blocks.{block}.{ours}.weight"
    assert set(found) == set(expected)
    heads = {"attn_q": 4, "attn_k": 2}
    for theirs, ours in expected.items():
        parameter = source.tensors[ours]
        read = found[theirs]
        if (part := theirs.split(".")[-2]) in heads:
            read = neighbours_to_halves(read, heads[part])
        rounded = parameter if parameter.dim() == 1 else parameter.half().float()
        assert torch.equal(read, rounded), theirs


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_other_types_round_as_torch_does(
    dtype: str, torch_dtype: torch.dtype, sentencepiece_model: Path, tmp_path: Path
) -> None:
    source = source_of(sentencepiece_model)
    found = values(export_gguf(source, tmp_path / "model.gguf", dtype=dtype).file)
    parameter = source.tensors["blocks.1.feed_forward.down.weight"]
    assert torch.equal(found["blk.1.ffn_down.weight"], parameter.to(torch_dtype).float())


def test_q8_0_is_within_half_a_step_and_leaves_rows_that_do_not_fit_in_f16(
    sentencepiece_model: Path, tmp_path: Path
) -> None:
    source = source_of(sentencepiece_model, d_ff=152)
    file = export_gguf(source, tmp_path / "model.gguf", dtype="q8_0").file
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.ffn_down.weight"] == "F16"  # its rows have 152 elements
    assert types["blk.0.attn_norm.weight"] == "F32"
    blocks = source.tensors["blocks.0.feed_forward.up.weight"].reshape(-1, 32)
    read = values(file)["blk.0.ffn_up.weight"].reshape(-1, 32)
    assert ((read - blocks).abs() <= 0.51 * blocks.abs().amax(1, keepdim=True) / 127 + 1e-4).all()
    assert not torch.equal(read, blocks)


def test_the_keys_tell_the_shape(sentencepiece_model: Path, tmp_path: Path) -> None:
    source = source_of(sentencepiece_model, rope_theta=5e5, norm_eps=1e-6)
    found = keys(export_gguf(source, tmp_path / "name.gguf").file)
    assert found["general.architecture"] == "llama"
    assert found["general.name"] == "name"
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    shape = {name.removeprefix("llama."): value for name, value in found.items() if name.startswith("llama.")}
    assert shape.pop("attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert shape == {
        "context_length": 96,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 160,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "vocab_size": 1_009,
        "rope.dimension_count": 16,
        "rope.freq_base": 5e5,
    }


def test_tokens_are_the_pieces_and_rows_beyond_them_are_unused(sentencepiece_model: Path, tmp_path: Path) -> None:
    found = keys(export_gguf(source_of(sentencepiece_model, vocab_size=1_012), tmp_path / "model.gguf").file)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    pieces = range(processor.vocab_size())
    assert tokens[:1_009] == [processor.id_to_piece(token) for token in pieces]
    assert found["tokenizer.ggml.scores"][:1_009] == [processor.get_score(token) for token in pieces]
    assert types[1_009:] == [gguf.TokenType.UNUSED] * 3
    assert [token for token in pieces if types[token] == gguf.TokenType.BYTE] == [
        token for token in pieces if processor.is_byte(token)
    ]
    assert types[0] == gguf.TokenType.UNKNOWN
    assert [tokens[token] for token in pieces if types[token] == gguf.TokenType.CONTROL][:5] == [
        "<s>",
        "</s>",
        "<pad>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    special = ("unknown", "bos", "eos", "padding")
    assert [found[f"tokenizer.ggml.{name}_token_id"] for name in special] == [0, 1, 2, 3]
    assert found["tokenizer.ggml.add_bos_token"]
    assert not found["tokenizer.ggml.add_eos_token"]
    assert not found["tokenizer.ggml.add_space_prefix"]


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_written_and_read_back(name: str, sentencepiece_model: Path, tmp_path: Path) -> None:
    source = source_of(sentencepiece_model, name)
    report = export_gguf(source, tmp_path / "model.gguf", dtype="q8_0")
    assert report.architecture == name.split(",")[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "model.gguf"]
    assert report.bytes == (tmp_path / "model.gguf").stat().st_size
    tensors = GGUFReader(report.file).tensors
    whole = [tensor for tensor in tensors if len(tensor.shape) == 1 or tensor.name == "position_embd.weight"]
    # llama.cpp adds and multiplies these in fp32 only.
    assert {tensor.tensor_type.name for tensor in whole} == {"F32"}
    assert {tensor.tensor_type.name for tensor in tensors} == {"F32", "Q8_0"}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "the exact GELU": ("gpt2", {"ffn": "gelu"}, r"model\.ffn=gelu: llama\.cpp's GPT-2 has gelu_tanh only"),
    "factors that only Llama loads": ("qwen3", LLAMA3, r"rope_scaling=llama3: llama\.cpp's Qwen3"),
    "biases that are not loaded": ("qwen3", {"attention_bias": "qkv"}, r"model\.attention_bias=qkv"),
    "heads wider than the model": ("starcoder2", {"head_dim": 32}, r"model\.head_dim=32"),
    "no stock architecture": ("llama", {"ffn": "relu"}, "no stock architecture"),
}


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused_with_the_setting(
    name: str, changes: dict[str, Any], message: str, sentencepiece_model: Path, tmp_path: Path
) -> None:
    source = source_of(sentencepiece_model, name, **changes)
    with pytest.raises(UserError, match=message):
        export_gguf(source, tmp_path / "model.gguf")
    assert source.reads == []
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_json_is_refused(sentencepiece_model: Path, tmp_path: Path) -> None:
    definition = tmp_path / "tokenizer.json"
    definition.write_text("{}")
    with pytest.raises(DataError, match="splits texts by a pattern"):
        export_gguf(source_of(definition), tmp_path / "model.gguf")
    with pytest.raises(UserError, match="--tokenizer"):
        export_gguf(source_of(None), tmp_path / "model.gguf")


def test_an_unknown_type_is_refused(sentencepiece_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype=q4_0 is not one of bf16, f16, fp32, q8_0"):
        export_gguf(source_of(sentencepiece_model), tmp_path / "model.gguf", dtype="q4_0")


def test_only_an_earlier_gguf_file_is_replaced_and_only_on_request(sentencepiece_model: Path, tmp_path: Path) -> None:
    source, output = source_of(sentencepiece_model), tmp_path / "model.gguf"
    with pytest.raises(UserError, match="is a folder"):
        export_gguf(source, tmp_path, overwrite=True)
    output.write_text("my notes")
    with pytest.raises(UserError, match="--overwrite"):
        export_gguf(source, output)
    with pytest.raises(UserError, match="is not a GGUF file"):
        export_gguf(source, output, overwrite=True)
    assert output.read_text() == "my notes"
    output.unlink()
    export_gguf(source, output, dtype="fp32")
    before = output.stat().st_size
    export_gguf(source, output, overwrite=True)
    assert output.stat().st_size < before


BROKEN: dict[str, tuple[float, str]] = {
    "not a number": (float("nan"), r"blocks\.1\.attention\.output\.weight: 1 of 4096"),
    "too large for half precision": (1e5, r"(?s)attn_output\.weight holds 1e\+05, above the F16 maximum.*--dtype bf16"),
}


@pytest.mark.parametrize(("value", "message"), BROKEN.values(), ids=BROKEN)
def test_a_weight_that_cannot_be_written_leaves_the_earlier_file(
    value: float, message: str, sentencepiece_model: Path, tmp_path: Path
) -> None:
    source, output = source_of(sentencepiece_model), tmp_path / "model.gguf"
    export_gguf(source, output)
    before = output.read_bytes()
    source.tensors["blocks.1.attention.output.weight"][3, 5] = value
    with pytest.raises(ExportError, match=message):
        export_gguf(source, output, overwrite=True)
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) == [output]


def test_a_file_that_is_not_read_back_as_written_is_not_published(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_model, "interleave", lambda rows, n_heads: rows)
    with pytest.raises(ExportError, match=r"blk\.0\.attn_q\.weight: \d+ elements were not read back"):
        export_gguf(source_of(sentencepiece_model), tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chunk", [1, 1_000])
def test_a_large_tensor_is_compared_in_parts_that_hold_whole_heads(
    chunk: int, sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, compared = source_of(sentencepiece_model), []
    monkeypatch.setattr(gguf_proof, "CHUNK", chunk)
    count = gguf_proof._count_wrong
    monkeypatch.setattr(gguf_proof, "_count_wrong", lambda *given: compared.append(given[1].numel()) or count(*given))
    export_gguf(source, tmp_path / "model.gguf")
    assert sum(compared) == sum(tensor.numel() for tensor in source.tensors.values())
    assert max(compared) <= max(chunk, 16 * 64)  # a head's rows of queries


def test_each_parameter_is_read_once_to_write_it(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_export, "prove_by_reading", lambda *arguments: None)
    monkeypatch.setattr(gguf_export, "prove_with_llama_cpp", lambda *arguments: None)
    source = source_of(sentencepiece_model, "gpt2")
    export_gguf(source, tmp_path / "model.gguf")
    assert sorted(source.reads) == sorted(source.tensors)


def test_without_the_package_the_message_says_what_to_install(
    sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'pretrain-toolkit\[gguf\]'"):
        export_gguf(source_of(sentencepiece_model), tmp_path / "model.gguf")


@needs_llama_cpp
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_decoders_logits(name: str, sentencepiece_model: Path, tmp_path: Path) -> None:
    """In fp32, where a rotation that is off by a hundredth would show."""
    source = source_of(sentencepiece_model, name)
    file = export_gguf(source, tmp_path / "model.gguf", dtype="fp32").file
    tokens_BT = torch.randint(1_009, (1, 64), generator=torch.Generator().manual_seed(3))
    [theirs_TV], _ = ask_llama_cpp(str(LLAMA_CPP), file, token_rows=tokens_BT.tolist())
    with torch.inference_mode():
        ours_TV = decoder_of(source)(tokens_BT)[0]
    # llama.cpp takes GELU from a table of half precision.
    bound = 5e-3 if source.config.model.ffn == "gelu_tanh" else 2e-5
    torch.testing.assert_close(torch.from_numpy(theirs_TV), ours_TV, rtol=0, atol=bound)


@needs_llama_cpp
@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_llama_cpp_proves_the_smaller_types(dtype: str, sentencepiece_model: Path, tmp_path: Path) -> None:
    report = export_gguf(source_of(sentencepiece_model), tmp_path / "model.gguf", dtype=dtype)
    assert report.llama_cpp is not None
    assert report.llama_cpp.same_argmax > 0.9 * report.llama_cpp.positions
    assert report.llama_cpp.texts > 800
    assert "llama.cpp's logits differ" in report.summary()


@needs_llama_cpp
def test_llama_cpp_gives_the_ids_of_sentencepiece(sentencepiece_model: Path, tmp_path: Path) -> None:
    file = export_gguf(source_of(sentencepiece_model), tmp_path / "model.gguf").file
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    texts = without_special_spellings(stress_texts(), read_proto(sentencepiece_model))
    _, ids = ask_llama_cpp(str(LLAMA_CPP), file, token_rows=[[1]], texts=texts)
    assert len(texts) > 800
    assert [text for text, found in zip(texts, ids, strict=True) if found != processor.encode(text)] == []


def neither_writes_nor_expects_the_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gguf_model, "interleave", lambda rows, n_heads: rows)
    patch.setattr("pretrain.convert.gguf.gguf_check.deinterleave", lambda rows, n_heads: rows)


def puts_a_space_before_each_text(patch: pytest.MonkeyPatch) -> None:
    monkey = gguf.GGUFWriter.add_add_space_prefix
    patch.setattr(gguf.GGUFWriter, "add_add_space_prefix", lambda writer, value: monkey(writer, True))


def forgets_the_scores(patch: pytest.MonkeyPatch) -> None:
    monkey = gguf.GGUFWriter.add_token_scores
    patch.setattr(gguf.GGUFWriter, "add_token_scores", lambda writer, scores: monkey(writer, [0.0] * len(scores)))


def turns_by_another_base(patch: pytest.MonkeyPatch) -> None:
    monkey = gguf.GGUFWriter.add_rope_freq_base
    patch.setattr(gguf.GGUFWriter, "add_rope_freq_base", lambda writer, value: monkey(writer, 1.01 * value))


MISTAKES = {
    "rows in the order of transformers": (neither_writes_nor_expects_the_order, "llama.cpp's logits differ"),
    "theta off by a hundredth": (turns_by_another_base, "llama.cpp's logits differ"),
    "a space before each text": (puts_a_space_before_each_text, "differently"),
    "no scores": (forgets_the_scores, "differently"),
}


@needs_llama_cpp
@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_llama_cpp_understands_otherwise_is_not_published(
    mistake: Any, message: str, sentencepiece_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(ExportError, match=message):
        export_gguf(source_of(sentencepiece_model), tmp_path / "model.gguf", dtype="fp32")
    assert list(tmp_path.iterdir()) == []


@needs_llama_cpp
def test_a_file_that_llama_cpp_refuses_is_reported_with_its_reason(sentencepiece_model: Path, tmp_path: Path) -> None:
    file = export_gguf(source_of(sentencepiece_model), tmp_path / "model.gguf").file
    file.write_bytes(file.read_bytes()[:-4_096])
    with pytest.raises(LlamaCppError, match="error"):
        ask_llama_cpp(str(LLAMA_CPP), file, token_rows=[[1]])
