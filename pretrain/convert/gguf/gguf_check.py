"""Verification of a GGUF file before it is published.

    1. read back: every tensor equals the run's parameter, in the requested type, and every token its piece
    2. if llama.cpp is installed: its logits match the decoder's, its token ids SentencePiece's

The first finds errors of writing; it undoes the order of rotary rows with a function of its own. The second finds
differences in what llama.cpp computes. Its bound depends on the type: llama.cpp rounds activations to the type of the
weights in each product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import sentencepiece
import torch
from torch import Tensor

from pretrain.convert.files.weight_files import WeightSource, assemble
from pretrain.convert.gguf.gguf_tensors import GgufTensor, deinterleave, rope_factors
from pretrain.convert.gguf.gguf_tokenizer import without_special_spellings
from pretrain.convert.gguf.llama_cpp import LlamaCppError, ask_llama_cpp, llama_cpp_interpreter
from pretrain.convert.verify.logits import proof_tokens
from pretrain.convert.weight_sources import load_decoder
from pretrain.errors import ExportError
from tokenizer.models.sentencepiece import read_proto
from tokenizer.models.stress_texts import stress_texts

# RMS of the logits' differences over the RMS of the logits. Measured: 3e-7, 1e-3, 8e-3 and 3e-2 on random weights, a
# tenth of that on trained ones; exchanged names or rows in a wrong order give 9e-2 to 2e-1.
BOUNDS = {"fp32": 1e-5, "f16": 5e-3, "bf16": 3e-2, "q8_0": 6e-2}
GELU_BOUND = 2e-3  # llama.cpp looks up GELU in an fp16 table
Q8_BLOCK = 32
CHUNK = 1 << 22  # elements compared at once


@dataclass(frozen=True)
class LlamaCppProof:
    """Comparison of llama.cpp with our decoder and SentencePiece.

    `relative_rms` is the RMS of the logits' differences over the RMS of the logits.
    """

    relative_rms: float
    max_abs_difference: float
    max_abs_logit: float
    same_argmax: int
    positions: int
    texts: int


def prove_by_reading(
    file: Path, expected: Sequence[GgufTensor], source: WeightSource, model_file: Path, gguf: Any
) -> None:
    """Compare every tensor and token of the file with the run's. Raises ExportError at the first difference."""
    reader = gguf.GGUFReader(file)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if set(found) != {tensor.name for tensor in expected}:
        raise ExportError(f"{file.name} lists tensors other than those written: {sorted(set(found))[:5]} …")
    for tensor in expected:
        read = found[tensor.name]
        shape = tuple(int(size) for size in reversed(read.shape))
        if shape != tensor.shape:
            raise ExportError(f"{tensor.name} of {file.name} has shape {shape}, not {tensor.shape}")
        _check_values(tensor, read, source, gguf)
    pieces = [piece.piece for piece in read_proto(model_file).pieces]
    if reader.get_field("tokenizer.ggml.tokens").contents()[: len(pieces)] != pieces:
        raise ExportError(f"the tokens of {file.name} are not the pieces of {model_file}")


def prove_with_llama_cpp(file: Path, source: WeightSource, model_file: Path, dtype: str) -> LlamaCppProof | None:
    """Compare logits and ids; None if llama.cpp is not installed. Raises ExportError with the difference."""
    interpreter = llama_cpp_interpreter()
    if interpreter is None:
        return None
    texts = without_special_spellings(stress_texts(), read_proto(model_file))
    tokens_BT = proof_tokens(source, model_file)[:, : source.config.data.seq_len]
    try:
        logits, ids = ask_llama_cpp(interpreter, file, token_rows=tokens_BT.tolist(), texts=texts)
    except LlamaCppError as error:
        raise ExportError(f"llama.cpp cannot run {file.name}: {error}") from error
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    for text, theirs in zip(texts, ids, strict=True):
        if theirs != processor.encode(text):
            raise ExportError(f"llama.cpp and SentencePiece encode {text[:60]!r} differently")
    with torch.inference_mode():
        ours_BTV = load_decoder(source)(tokens_BT)
    bound = max(BOUNDS[dtype], GELU_BOUND if source.config.model.ffn == "gelu_tanh" else 0.0)
    return _compare(ours_BTV, torch.from_numpy(numpy.stack(logits)), bound, len(texts))


def _compare(ours_BTV: Tensor, theirs_BTV: Tensor, bound: float, texts: int) -> LlamaCppProof:
    difference_BTV = ours_BTV - theirs_BTV
    relative = (difference_BTV.square().mean() / ours_BTV.square().mean()).sqrt().item()
    # `not <=` so that NaN fails as well.
    if not relative <= bound:
        raise ExportError(
            f"llama.cpp's logits differ from the trained model's by a relative RMS of {relative:.3g}; the bound is "
            f"{bound:.3g}"
        )
    return LlamaCppProof(
        relative_rms=relative,
        max_abs_difference=difference_BTV.abs().max().item(),
        max_abs_logit=ours_BTV.abs().max().item(),
        same_argmax=int((ours_BTV.argmax(-1) == theirs_BTV.argmax(-1)).sum()),
        positions=ours_BTV[..., 0].numel(),
        texts=texts,
    )


def _check_values(tensor: GgufTensor, written: Any, source: WeightSource, gguf: Any) -> None:
    if tensor.hf_tensor is None:
        values = rope_factors(source.config.model)
    else:
        values = assemble(source, tensor.hf_tensor, torch.float32)
    # Chunks of complete heads: only one parameter and a chunk are in memory.
    per_head = values.shape[0] // tensor.reordered_heads if tensor.reordered_heads else 1
    step = per_head * max(1, CHUNK * values.shape[0] // values.numel() // per_head)
    kind, wrong = written.tensor_type, 0
    for begin in range(0, values.shape[0], step):
        expected = values[begin : begin + step]
        read = torch.from_numpy(numpy.array(gguf.quants.dequantize(written.data[begin : begin + step], kind)))
        if tensor.reordered_heads:
            read = deinterleave(read, expected.shape[0] // per_head)
        wrong += _count_wrong(read, expected, kind.name)
    if wrong:
        raise ExportError(f"{tensor.name}: {wrong} elements were not read back as written ({kind.name})")


def _count_wrong(read: Tensor, expected: Tensor, kind: str) -> int:
    if kind != "Q8_0":
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        return int((read != expected.to(dtype).float()).sum())
    # Half a quantization step of the block, plus the rounding of its scale to fp16.
    blocks = expected.reshape(-1, Q8_BLOCK)
    allowed = 0.6 * blocks.abs().amax(1, keepdim=True) / 127 + 127 * 2.0**-25
    return int(((read.reshape(-1, Q8_BLOCK) - blocks).abs() > allowed).sum())
