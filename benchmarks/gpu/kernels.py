"""Attention and loss on a device, against the same formula in float64 on the CPU: forward and gradients.

The bound is relative to the plain formula in the same type: a fused kernel may be at most `SLACK` times as far from float64
as the formula that it replaces, or as far as a rounding of its result.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.table import Row
from pretrain.model.attention import document_mask, fast_attention, reference_attention
from pretrain.model.loss import IGNORE, chunked_cross_entropy, plain_cross_entropy

SLACK = 4.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Outputs = list[Tensor]


def check(size: str, device: str) -> list[Row]:
    """A row for each kernel, precision and mask."""
    torch.manual_seed(0)
    return [*_attention_rows(size, device), *_loss_rows(size, device)]


def relative_error(found: Outputs, exact: Outputs) -> float:
    """Largest error of any output, relative to the norm of that output."""
    errors = [(a.double().cpu() - b.cpu()).norm() / b.cpu().norm() for a, b in zip(found, exact, strict=True)]
    return float(torch.stack(errors).max())


def _row(name: str, precision: str, fast: float, plain: float) -> Row:
    allowed = SLACK * max(plain, torch.finfo(DTYPES[precision]).eps)
    return {
        "kernel": name,
        "precision": precision,
        "error": f"{fast:.1e}",
        "error of the formula": f"{plain:.1e}",
        "right": "yes" if fast <= allowed else "no",
    }


def _with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> Outputs:
    """Result of `function`, then gradients of its inputs for a fixed gradient of the result."""
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    result = function(*leaves)
    weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).reshape(result.shape)
    result.backward(weights.to(result))
    return [result.detach(), *(part.grad for part in leaves if part.grad is not None)]


def _attention_rows(size: str, device: str) -> list[Row]:
    batch, heads, kv_heads, length, width = (2, 16, 4, 1024, 128) if size == "full" else (2, 4, 2, 64, 16)
    documents_BT = (torch.arange(length) // (length // 3)).expand(batch, length)
    rows = []
    for name, keys, masked in (("causal", heads, False), ("grouped", kv_heads, False), ("documents", kv_heads, True)):
        shapes = [(batch, heads, length, width), *[(batch, keys, length, width)] * 2]
        exact_inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        for precision, dtype in DTYPES.items():
            rounded = [part.to(dtype) for part in exact_inputs]

            def run(function: Callable[..., Tensor], inputs: list[Tensor], masked: bool = masked) -> Outputs:
                mask = document_mask(documents_BT.to(inputs[0].device), inputs[0].dtype) if masked else None
                return _with_gradients(lambda q, k, v: function(q, k, v, mask), inputs)

            exact = run(_exact_attention, [part.double() for part in rounded])
            here = [part.to(device) for part in rounded]
            fast, plain = (relative_error(run(f, here), exact) for f in (fast_attention, reference_attention))
            rows.append(_row(f"attention, {name}", precision, fast, plain))
    return rows


def _exact_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask_B1TT: Tensor | None) -> Tensor:
    """`reference_attention` without its fp32 softmax."""
    groups, length = q_BHTC.shape[1] // k_BKTC.shape[1], q_BHTC.shape[2]
    scores = q_BHTC @ k_BKTC.repeat_interleave(groups, 1).transpose(-2, -1) / q_BHTC.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
    scores = scores if mask_B1TT is None else scores + mask_B1TT
    return scores.softmax(-1) @ v_BKTC.repeat_interleave(groups, 1)


def _loss_rows(size: str, device: str) -> list[Row]:
    tokens, width, vocab, chunk = (4096, 1024, 32_000, 1024) if size == "full" else (96, 16, 200, 32)
    targets = torch.randint(vocab, (1, tokens))
    targets[0, ::7] = IGNORE
    rows = []
    for precision, dtype in DTYPES.items():
        x, weight = torch.randn(1, tokens, width).to(dtype), (torch.randn(vocab, width) / width**0.5).to(dtype)

        def ours(x_BTD: Tensor, weight_VD: Tensor) -> Tensor:
            return chunked_cross_entropy(x_BTD, weight_VD, targets.to(x_BTD.device), 0.0, chunk).total

        def plain(x_BTD: Tensor, weight_VD: Tensor) -> Tensor:
            return plain_cross_entropy(x_BTD @ weight_VD.T, targets.to(x_BTD.device))

        def exact(x_BTD: Tensor, weight_VD: Tensor) -> Tensor:
            logits = (x_BTD @ weight_VD.T).flatten(0, -2)
            return torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")

        truth = _with_gradients(exact, [x.double(), weight.double()])
        here = [x.to(device), weight.to(device)]
        found, formula = (relative_error(_with_gradients(f, here), truth) for f in (ours, plain))
        rows.append(_row("loss in chunks", precision, found, formula))
    return rows
