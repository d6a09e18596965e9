"""A checkpoint → one GGUF file for llama.cpp, through the package `gguf`.

1. refuse what cannot be exported: architecture, parameters, tokenizer, an output that exists
2. keys and tokens, then tensor by tensor, into a staging file beside the output
3. the proof: read back, and run by llama.cpp where that is installed                               -> gguf_proof.py
4. fsync, then one rename. Until then nothing is to be seen at the output; on failure nothing is left behind

Vectors, norms and tables of positions are fp32 whatever type was asked for, as in llama.cpp's own converter; a matrix whose
rows are no multiple of 32 long is F16 where Q8_0 was asked for. One tensor is in memory at a time.
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
from pretrain.convert.gguf.gguf_tensors import Row, add_model_keys, choose_architecture, rows_of, tensor_of
from pretrain.convert.gguf.gguf_tokenizer import add_tokenizer_keys
from pretrain.errors import DataError, ExportError, UserError
from pretrain.storage.files import move_into_place, sync
from tokenizer.models.base import is_tokenizer_json
from tokenizer.models.sentencepiece_to_hf import read_model

# Names of `gguf.GGMLQuantizationType` and `gguf.LlamaFileType`.
TYPES = {"f16": ("F16", "MOSTLY_F16"), "bf16": ("BF16", "MOSTLY_BF16"), "q8_0": ("Q8_0", "MOSTLY_Q8_0")}
TYPES["fp32"] = ("F32", "ALL_F32")
MAGIC = b"GGUF"
POSITIONS = "position_embd.weight"


@dataclass(frozen=True)
class GgufReport:
    """What was published. `llama_cpp` is None where llama.cpp was not there to be asked."""

    file: Path
    architecture: str
    step: int
    dtype: str
    parameters: int
    bytes: int
    llama_cpp: LlamaCppProof | None
    seconds: float

    def summary(self) -> str:
        """Two lines for a person."""
        proof = self.llama_cpp
        proved = (
            "every tensor and token read back; install llama-cpp-python to compare logits too"
            if proof is None
            else f"llama.cpp's logits differ by {proof.max_abs_difference:.1e} at most where the largest is "
            f"{proof.max_abs_logit:.3g}, the same token is likeliest at {proof.same_argmax} of {proof.positions} "
            f"positions, {proof.texts} texts tokenize as in SentencePiece"
        )
        return (
            f"{self.file}: {self.architecture} of step {self.step}, {self.parameters:,} parameters in {self.dtype}, "
            f"{self.bytes / 1e6:.1f} MB\nproved: {proved}"
        )


def export_gguf(
    source: WeightSource,
    output: Path,
    *,
    dtype: str = "f16",
    overwrite: bool = False,
    tokenizer: Path | None = None,
) -> GgufReport:
    """Write `source` to the file `output`, which llama.cpp and what is built on it can run.

    `dtype` is `f16`, `q8_0`, `bf16` or `fp32`. `tokenizer` is a SentencePiece model to take in place of the one that was
    saved with the run. With `overwrite`, an earlier GGUF file is replaced once the new one is proved.

    Raises UserError where the input cannot be exported (nothing was started), ExportError where the weights are not
    what they should be or the proof fails (nothing was published).
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
    rows = rows_of(source, gguf)

    with _staging(output) as file:
        writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[family.upper()]])
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(output.stem)
        writer.add_description(f"step {source.step:,}, {source.tokens:,} tokens; pretrain-toolkit")
        writer.add_file_type(gguf.LlamaFileType[TYPES[dtype][1]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_model_keys(writer, model, seq_len, gguf)
        add_tokenizer_keys(writer, read_model(model_file), model.vocab_size, gguf)
        _write_tensors(writer, rows, source, dtype, gguf)
        prove_by_reading(file, rows, source, model_file, gguf)
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


def stored_type(row: Row, dtype: str) -> str:
    """Name of the type that a tensor gets where `dtype` was asked for."""
    if len(row.shape) < 2 or row.name.endswith("_norm.weight") or row.name == POSITIONS:
        return "F32"
    if dtype == "q8_0" and row.shape[-1] % 32:
        return "F16"
    return TYPES[dtype][0]


def _write_tensors(writer: Any, rows: list[Row], source: WeightSource, dtype: str, gguf: Any) -> None:
    for row in rows:
        kind = gguf.GGMLQuantizationType[stored_type(row, dtype)]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = prod(row.shape) // block * block_bytes
        writer.add_tensor_info(row.name, row.shape, numpy.dtype(numpy.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for row in rows:
            writer.write_tensor_data(_packed(row, source, stored_type(row, dtype), gguf))
    finally:
        writer.close()


def _packed(row: Row, source: WeightSource, kind: str, gguf: Any) -> Any:
    tensor = tensor_of(row, source)
    largest = max(map(abs, (tensor.min().item(), tensor.max().item())))
    if kind == "F16" and largest > torch.finfo(torch.float16).max:
        raise ExportError(
            f"{row.name} holds {largest:.3g}, and F16 ends at {torch.finfo(torch.float16).max:,.0f}",
            hint="export with --dtype bf16",
        )
    return gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType[kind])


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
        raise UserError(
            f"{output} is a folder, and a GGUF export is one file", hint=f"name it: {output / 'model.gguf'}"
        )
    if not overwrite:
        raise UserError(f"{output} exists", hint="choose another name, or replace it with --overwrite")
    with output.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{output} is no GGUF file, and --overwrite only replaces an earlier export")


def _checked_tokenizer(model_file: Path | None, vocab_size: int) -> Path:
    if model_file is None:
        raise UserError(
            "the run has no tokenizer, and without one nobody can use the model",
            hint="name the SentencePiece model that its shards were made with: --tokenizer FILE",
        )
    if is_tokenizer_json(model_file):
        raise DataError(
            f"{model_file}: a tokenizer.json splits texts by a pattern that llama.cpp knows by name only, and a wrong "
            "one changes ids silently",
            hint="where a SentencePiece model lies behind it, name that: --tokenizer FILE; else export with --to hf, then "
            "run llama.cpp's convert_hf_to_gguf.py, which knows the patterns of well-known models",
        )
    check_tokenizer(model_file, vocab_size)
    return model_file


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A file on the output's file system, so that publishing is a rename. Removed unless it was renamed."""
    file = output.with_name(f".{output.name}.staging-{os.getpid()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _publish(file: Path, output: Path) -> None:
    sync(file)
    move_into_place(file, output)
