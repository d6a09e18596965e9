"""What a GGUF file has to show before it is published.

    1. read back: every tensor is the parameter that the run has, in the type that was asked for, and so are the tokens
    2. where llama.cpp can be run: its logits are the decoder's, and its token ids SentencePiece's

The first finds whatever went wrong on the way to the disk, and undoes the order of rotary rows by another function than the
one that made it. The second finds what llama.cpp understands otherwise. Its bound depends on the type: llama.cpp rounds
activations to that of the weights in each product.
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
from pretrain.convert.gguf.gguf_tensors import Row, deinterleave, rope_factors
from pretrain.convert.gguf.gguf_tokenizer import without_names
from pretrain.convert.gguf.llama_cpp import LlamaCppError, ask_llama_cpp, llama_cpp_interpreter
from pretrain.convert.verify.logits import proof_tokens
from pretrain.convert.weight_sources import load_decoder
from pretrain.errors import ExportError
from tokenizer.models.sentencepiece import read_proto
from tokenizer.models.stress_texts import stress_texts

# Root mean square of the differences of logits over that of the logits. Measured: 3e-7, 1e-3, 8e-3 and 3e-2 on fresh
# weights, a tenth of that on trained ones; names exchanged or rows in another order give 9e-2 to 2e-1.
BOUNDS = {"fp32": 1e-5, "f16": 5e-3, "bf16": 3e-2, "q8_0": 6e-2}
GELU_BOUND = 2e-3  # llama.cpp looks GELU up in a table of fp16
Q8_BLOCK = 32
CHUNK = 1 << 22  # elements that are compared at once


@dataclass(frozen=True)
class LlamaCppProof:
    """llama.cpp against our decoder and SentencePiece: how far, and on how much.

    `relative_rms` is the root mean square of the differences of logits over that of the logits themselves.
    """

    relative_rms: float
    max_abs_difference: float
    max_abs_logit: float
    same_argmax: int
    positions: int
    texts: int


def prove_by_reading(file: Path, rows: Sequence[Row], source: WeightSource, model_file: Path, gguf: Any) -> None:
    """Compare every tensor and token of the file with the run's. Raises ExportError with the first that differs."""
    reader = gguf.GGUFReader(file)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if set(found) != {row.name for row in rows}:
        raise ExportError(f"{file.name} lists other tensors than were written: {sorted(set(found))[:5]} …")
    for row in rows:
        tensor = found[row.name]
        if tuple(int(size) for size in reversed(tensor.shape)) != row.shape:
            raise ExportError(f"{row.name} of {file.name} has the shape {tensor.shape.tolist()}")
        _check_values(row, tensor, source, gguf)
    pieces = [piece.piece for piece in read_proto(model_file).pieces]
    if reader.get_field("tokenizer.ggml.tokens").contents()[: len(pieces)] != pieces:
        raise ExportError(f"the tokens of {file.name} are not the pieces of {model_file}")


def prove_with_llama_cpp(file: Path, source: WeightSource, model_file: Path, dtype: str) -> LlamaCppProof | None:
    """Compare logits and ids; None where llama.cpp cannot be run here. Raises ExportError with the figures."""
    interpreter = llama_cpp_interpreter()
    if interpreter is None:
        return None
    texts = without_names(stress_texts(), read_proto(model_file))
    tokens_BT = proof_tokens(source, model_file)[:, : source.config.data.seq_len]
    try:
        logits, ids = ask_llama_cpp(interpreter, file, token_rows=tokens_BT.tolist(), texts=texts)
    except LlamaCppError as error:
        raise ExportError(f"llama.cpp cannot run {file.name}: {error}") from error
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    for text, theirs in zip(texts, ids, strict=True):
        if theirs != processor.encode(text):
            raise ExportError(f"llama.cpp and SentencePiece give {text[:60]!r} different ids")
    with torch.inference_mode():
        ours_BTV = load_decoder(source)(tokens_BT)
    bound = max(BOUNDS[dtype], GELU_BOUND if source.config.model.ffn == "gelu_tanh" else 0.0)
    return _compare(ours_BTV, torch.from_numpy(numpy.stack(logits)), bound, len(texts))


def _compare(ours_BTV: Tensor, theirs_BTV: Tensor, bound: float, texts: int) -> LlamaCppProof:
    difference_BTV = ours_BTV - theirs_BTV
    relative = (difference_BTV.square().mean() / ours_BTV.square().mean()).sqrt().item()
    # Written so that a NaN fails as well.
    if not relative <= bound:
        raise ExportError(
            f"llama.cpp's logits differ from the trained model's by {relative:.3g} of their size (root mean square); the "
            f"bound is {bound:.3g}"
        )
    return LlamaCppProof(
        relative_rms=relative,
        max_abs_difference=difference_BTV.abs().max().item(),
        max_abs_logit=ours_BTV.abs().max().item(),
        same_argmax=int((ours_BTV.argmax(-1) == theirs_BTV.argmax(-1)).sum()),
        positions=ours_BTV[..., 0].numel(),
        texts=texts,
    )


def _check_values(row: Row, tensor: Any, source: WeightSource, gguf: Any) -> None:
    """Some rows at a time, whole heads of them: besides the parameter itself little is in memory."""
    whole = rope_factors(source.config.model) if row.stored is None else assemble(source, row.stored, torch.float32)
    per_head = whole.shape[0] // row.reordered_heads if row.reordered_heads else 1
    step = per_head * max(1, CHUNK * whole.shape[0] // whole.numel() // per_head)
    kind, wrong = tensor.tensor_type, 0
    for begin in range(0, whole.shape[0], step):
        part = whole[begin : begin + step]
        read = torch.from_numpy(numpy.array(gguf.quants.dequantize(tensor.data[begin : begin + step], kind)))
        if row.reordered_heads:
            read = deinterleave(read, part.shape[0] // per_head)
        wrong += _count_wrong(read, part, kind.name)
    if wrong:
        raise ExportError(f"{row.name}: {wrong} elements were not read back as they were written ({kind.name})")


def _count_wrong(read: Tensor, part: Tensor, kind: str) -> int:
    if kind != "Q8_0":
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        return int((read != part.to(dtype).float()).sum())
    # Half a step of the block's scale, which is itself rounded to fp16.
    blocks = part.reshape(-1, Q8_BLOCK)
    allowed = 0.6 * blocks.abs().amax(1, keepdim=True) / 127 + 127 * 2.0**-25
    return int(((read.reshape(-1, Q8_BLOCK) - blocks).abs() > allowed).sum())
