"""Chunked cross-entropy: the fp32 logits (B·T, V) are never materialized.

    1. split hidden states (N, D) into chunks of `chunk_tokens`
    2. compute a chunk's logits (n, V), add to the loss, overwrite the logits with their gradient
    3. accumulate the gradients of the hidden states and the head's weight; free the logits

The gradient is complete after forward; backward only scales it. This takes three matrix products like the plain loss
(recomputing chunks in backward takes four), and needs the head's weight in forward only, which suits ZeRO-3. After Hsu et
al. 2024, "Liger Kernel", https://arxiv.org/abs/2410.10989.

z-loss: Chowdhery et al. 2022, "PaLM", section 5, https://arxiv.org/abs/2204.02311.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # masks a target, as in torch's cross_entropy


class LossSums(NamedTuple):
    """fp32 sums over targets: the loss to minimize, cross-entropy in nats, squared log-partition.

    `correct` counts targets predicted by the argmax (the first, of equals), exactly up to 2²⁴. NaN if gradients are computed:
    training does not need it, and it costs a pass over the logits.
    """

    total: Tensor
    cross_entropy: Tensor
    z_squared: Tensor
    correct: Tensor


def chunked_cross_entropy(
    x_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor, z_loss_weight: float, chunk_tokens: int
) -> LossSums:
    """Summed loss of predicting `targets_BT` (IGNORE masks a target) from hidden states.

    total = Σ cross-entropy + z_loss_weight · Σ logsumexp². Only `total` carries a gradient.
    """
    if not torch.is_grad_enabled():  # needs_input_grad of a Function is True even under no_grad
        x_BTD, weight_VD = x_BTD.detach(), weight_VD.detach()
    sums = _ChunkedLoss.apply(x_BTD.flatten(0, -2), weight_VD, targets_BT.flatten(), z_loss_weight, chunk_tokens)
    return LossSums(*sums)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, weight_VD, targets_N, z_loss_weight, chunk_tokens):
        want_x, want_weight = ctx.needs_input_grad[:2]
        sums = torch.zeros(4, dtype=torch.float32, device=x_ND.device)
        grad_x_ND = torch.empty_like(x_ND) if want_x else None
        # Summed in fp32 over chunks: a bf16 sum would lose the small late terms.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if want_weight else None
        for start in range(0, x_ND.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            x, targets = x_ND[rows], targets_N[rows]
            logits = (x @ weight_VD.T).float()
            chunk_sums, grad_logits = _loss_and_grad(logits, targets, z_loss_weight, want_x or want_weight)
            sums += chunk_sums
            del logits  # the same memory as `grad_logits`: the next chunk's logits need it
            grad_logits = grad_logits.to(x.dtype)
            if want_x:
                grad_x_ND[rows] = grad_logits @ weight_VD
            if want_weight:
                grad_weight_VD += grad_logits.T @ x
            del grad_logits
        ctx.save_for_backward(grad_x_ND, grad_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        total, *others = (part.clone() for part in sums)
        ctx.mark_non_differentiable(*others)
        return total, *others

    @staticmethod
    def backward(ctx, grad_total, *_):
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        # In place: the gradient of a large vocabulary's head is gigabytes. Autograd refuses a second backward after that.
        # grad_total is a 0-d fp32 tensor: the product is computed in fp32 and keeps the dtype of grad_x_ND.
        grad_x = None if grad_x_ND is None else grad_x_ND.mul_(grad_total)
        grad_weight = None if grad_weight_VD is None else grad_weight_VD.mul_(grad_total).to(ctx.weight_dtype)
        return grad_x, grad_weight, None, None, None


def _loss_and_grad(logits: Tensor, targets: Tensor, z_loss_weight: float, want_grad: bool) -> tuple[Tensor, Tensor]:
    """Sums of one chunk, and the gradient of its logits, which overwrites them."""
    counts = targets != IGNORE
    safe_targets = targets.clamp_min(0)
    log_z = torch.logsumexp(logits, dim=-1)
    picked = logits.gather(-1, safe_targets[:, None]).squeeze(-1)
    cross_entropy = ((log_z - picked) * counts).sum()
    z_squared = (log_z.square() * counts).sum()
    correct = torch.full_like(z_squared, torch.nan) if want_grad else (logits.argmax(-1) == targets).sum()
    if want_grad:
        # d/dlogits of (log_z - picked) + w · log_z² = softmax · (1 + 2 w log_z) - onehot(target)
        probabilities = logits.sub_(log_z[:, None]).exp_()
        grad = probabilities.mul_((1 + 2 * z_loss_weight * log_z)[:, None])
        at_target = safe_targets[:, None]
        grad.scatter_(-1, at_target, grad.gather(-1, at_target) - 1)  # scatter_add_ is not deterministic on CUDA
        logits = grad.mul_(counts[:, None])
    total = cross_entropy + z_loss_weight * z_squared
    return torch.stack([total, cross_entropy, z_squared, correct]), logits


def plain_cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Summed cross-entropy by torch's own function: the reference in tests and benchmarks."""
    return F.cross_entropy(
        logits_BTV.flatten(0, -2).float(), targets_BT.flatten(), ignore_index=IGNORE, reduction="sum"
    )
