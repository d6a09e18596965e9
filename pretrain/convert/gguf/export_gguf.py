"""A checkpoint → one GGUF file for llama.cpp, through the package `gguf`.

1. refuse an unsupported architecture, tokenizer or set of parameters, and an output that exists
2. write keys and tokens, then tensor by tensor, into a staging file beside the output
3. verify: read the file back, and run it with llama.cpp if that is installed                       -> gguf_check.py
4. fsync and one atomic rename; on failure nothing is left behind

Vectors, norms and tables of positions are always fp32, as in llama.cpp's own converter; a matrix whose rows are not a
multiple of 32 long is F16 instead of Q8_0. One tensor is in memory at a time.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy
import torch

from pretrain.convert.files.tokenizer_files import check_tokenizer
from pretrain.convert.files.weight_files import WeightSource, refuse_unless_complete
from pretrain.convert.gguf.gguf_check import LlamaCppProof, prove_by_reading, prove_with_llama_cpp
from pretrain.convert.gguf.gguf_tensors import (
    GgufTensor,
    add_model_keys,
    choose_architecture,
    gguf_tensors,
    load_values,
)
from pretrain.convert.gguf.gguf_tokenizer import add_tokenizer_keys
from pretrain.errors import DataError, ExportError, UserError
from pretrain.storage.files import move_into_place, sync
from tokenizer.models.base import is_tokenizer_json
from tokenizer.models.sentencepiece import read_proto

# Names of `gguf.GGMLQuantizationType` and `gguf.LlamaFileType`.
TYPES = {"f16": ("F16", "MOSTLY_F16"), "bf16": ("BF16", "MOSTLY_BF16"), "q8_0": ("Q8_0", "MOSTLY_Q8_0")}
TYPES["fp32"] = ("F32", "ALL_F32")
MAGIC = b"GGUF"
POSITIONS = "position_embd.weight"


@dataclass(frozen=True)
class GgufReport:
    """The published file. `llama_cpp` is None if llama.cpp is not installed."""

    file: Path
    architecture: str
    step: int
    dtype: str
    parameters: int
    bytes: int
    llama_cpp: LlamaCppProof | None
    seconds: float

    def summary(self) -> str:
        """Two lines for the terminal."""
        proof = self.llama_cpp
        verified = (
            "every tensor and token was read back; pip install llama-cpp-python to compare logits as well"
            if proof is None
            else f"llama.cpp's logits differ by at most {proof.max_abs_difference:.1e} (largest logit "
            f"{proof.max_abs_logit:.3g}), argmax agrees at {proof.same_argmax} of {proof.positions} positions, "
            f"{proof.texts} texts tokenize as in SentencePiece"
        )
        return (
            f"{self.file}: {self.architecture} of step {self.step}, {self.parameters:,} parameters in {self.dtype}, "
            f"{self.bytes / 1e6:.1f} MB\nverified: {verified}"
        )


def export_gguf(
    source: WeightSource,
    output: Path,
    *,
    dtype: str = "f16",
    overwrite: bool = False,
    tokenizer: Path | None = None,
) -> GgufReport:
    """Write `source` to the file `output`, for llama.cpp and programs built on it.

    `dtype` is `f16`, `q8_0`, `bf16` or `fp32`. `tokenizer` is a SentencePiece model that replaces the run's own. With
    `overwrite`, an earlier GGUF file is replaced once the new one is verified.

    Raises UserError or DataError if the input cannot be exported, ExportError if weights are wrong or the verification
    fails. Nothing is published then.
    """
    started = time.monotonic()
    output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    model, seq_len = source.config.model, source.config.data.seq_len
    if dtype not in TYPES:
        raise UserError(f"dtype={dtype} is not one of {', '.join(sorted(TYPES))}")
    gguf = _import_gguf()
    _refuse_output(output, overwrite)
    family, _ = choose_architecture(model)
    refuse_unless_complete(source)
    model_file = _checked_tokenizer(tokenizer or source.tokenizer, model.vocab_size)
    tensors = gguf_tensors(source, gguf)

    with _staging(output) as file:
        writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[family.upper()]])
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(output.stem)
        writer.add_description(f"step {source.step:,}, {source.tokens:,} tokens; pretrain-toolkit")
        writer.add_file_type(gguf.LlamaFileType[TYPES[dtype][1]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_model_keys(writer, model, seq_len, gguf)
        add_tokenizer_keys(writer, read_proto(model_file), model.vocab_size, gguf)
        _write_tensors(writer, tensors, source, dtype, gguf)
        prove_by_reading(file, tensors, source, model_file, gguf)
        proof = prove_with_llama_cpp(file, source, model_file, dtype)
        size = file.stat().st_size
        _publish(file, output)
    return GgufReport(
        file=output,
        architecture=family,
        step=source.step,
        dtype=dtype,
        parameters=sum(prod(shape) for shape in source.shapes.values()),
        bytes=size,
        llama_cpp=proof,
        seconds=time.monotonic() - started,
    )


def stored_type(tensor: GgufTensor, dtype: str) -> str:
    """Name of a tensor's type in an export as `dtype`."""
    if len(tensor.shape) < 2 or tensor.name.endswith("_norm.weight") or tensor.name == POSITIONS:
        return "F32"
    if dtype == "q8_0" and tensor.shape[-1] % 32:
        return "F16"
    return TYPES[dtype][0]


def _write_tensors(writer: Any, tensors: list[GgufTensor], source: WeightSource, dtype: str, gguf: Any) -> None:
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[stored_type(tensor, dtype)]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = prod(tensor.shape) // block * block_bytes
        writer.add_tensor_info(tensor.name, tensor.shape, numpy.dtype(numpy.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_quantized(tensor, source, stored_type(tensor, dtype), gguf))
    finally:
        writer.close()


def _quantized(tensor: GgufTensor, source: WeightSource, kind: str, gguf: Any) -> Any:
    values = load_values(tensor, source)
    largest = max(map(abs, (values.min().item(), values.max().item())))
    if kind == "F16" and largest > torch.finfo(torch.float16).max:
        raise ExportError(
            f"{tensor.name} holds {largest:.3g}, above the F16 maximum of {torch.finfo(torch.float16).max:,.0f}",
            hint="export with --dtype bf16",
        )
    return gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType[kind])


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            f"export to GGUF needs the package {error.name}", hint="pip install 'pretrain-toolkit[gguf]'"
        ) from error
    return gguf


def _refuse_output(output: Path, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    if output.is_dir():
        raise UserError(f"{output} is a folder; a GGUF export is one file", hint=f"write to {output / 'model.gguf'}")
    if not overwrite:
        raise UserError(f"{output} exists", hint="choose another name or pass --overwrite")
    with output.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{output} is not a GGUF file; --overwrite only replaces an earlier export")


def _checked_tokenizer(model_file: Path | None, vocab_size: int) -> Path:
    if model_file is None:
        raise UserError(
            "the run has no tokenizer, which the export needs",
            hint="pass the SentencePiece model that encoded its shards: --tokenizer FILE",
        )
    if is_tokenizer_json(model_file):
        raise DataError(
            f"{model_file}: a tokenizer.json splits texts by a pattern that llama.cpp only knows by name; a wrong name "
            "changes ids silently",
            hint="if it was converted from a SentencePiece model, pass that: --tokenizer FILE; else export with --to hf, "
            "then run llama.cpp's convert_hf_to_gguf.py, which knows the patterns of well-known models",
        )
    check_tokenizer(model_file, vocab_size)
    return model_file


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A file on the output's file system, so that publishing is a rename. Removed unless renamed."""
    file = output.with_name(f".{output.name}.staging-{os.getpid()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _publish(file: Path, output: Path) -> None:
    sync(file)
    move_into_place(file, output)
