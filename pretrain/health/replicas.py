"""Comparison of model replicas: at ZeRO stages 0 to 2 each process has a full copy of the weights, and copies can diverge.

Silent data corruption (a flipped bit, a faulty device, a bad transfer) raises no error, and the loss may look normal. Each
parameter's bits are hashed on the device, in integer arithmetic and therefore exactly, and the hashes compared. The check
runs between backward and update: at stages 1 and 2 every update overwrites the replicas from the master weights.
"""

import hashlib
import socket
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.data.permute import hash64
from pretrain.distributed.collectives import gather_to_all
from pretrain.errors import TrainingError

CHUNK = 1 << 20  # elements hashed at once; bounds the extra memory
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SHOWN = 4


def compare_replicas(model: nn.Module, step: int) -> None:
    """Raise TrainingError on every rank if a rank's weights differ from the majority's. A collective."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    hashes = torch.stack([hash_bits(parameter) for parameter in parameters]).tolist()
    digest = hashlib.sha256(np.array(hashes).tobytes()).hexdigest()
    if len(set(gather_to_all(digest))) == 1:
        return
    hosts, everyone = zip(*gather_to_all((socket.gethostname(), hashes)), strict=True)
    error = TrainingError(
        f"step {step}: " + "; ".join(differences(names, everyone, hosts)),
        hint="nothing was saved since this step began; the same command resumes from the newest checkpoint. Exclude that "
        "machine until its memory and its device are tested (nvidia-smi -q -d ECC)",
    )
    error.everywhere = True
    raise error


@torch.no_grad()
def hash_bits(tensor: Tensor) -> Tensor:
    """64-bit hash of a tensor's bits, as an int64 scalar on its device.

    h = h · m + Σ wᵢ xᵢ over chunks, modulo 2⁶⁴, with odd wᵢ and m: detects any change of a single element, and any other with
    probability about 1 - 2⁻⁶³. Integer sums do not depend on the order of reduction.
    """
    flat = tensor.detach().reshape(-1).view(BITS[tensor.element_size()])
    result = torch.zeros((), dtype=torch.int64, device=tensor.device)
    factors = _odd_numbers(tensor.device)
    for start in range(0, flat.numel(), CHUNK):
        chunk = flat[start : start + CHUNK].to(torch.int64)
        result = result * factors[0] + (chunk * factors[1 : len(chunk) + 1]).sum()
    return result


def differences(names: Sequence[str], hashes: Sequence[Sequence[int]], hosts: Sequence[str]) -> list[str]:
    """One sentence per rank that differs from the majority; `hashes[rank][parameter]`.

    Without a majority (always with two processes) the parameter is reported for all ranks together.
    """
    odd: dict[tuple[int, ...], list[str]] = {}
    for name, values in zip(names, zip(*hashes, strict=True), strict=True):
        common, count = Counter(values).most_common(1)[0]
        if count == len(values):
            continue
        if count > len(values) / 2:
            for rank in (rank for rank, value in enumerate(values) if value != common):
                odd.setdefault((rank,), []).append(name)
        else:
            odd.setdefault(tuple(range(len(values))), []).append(name)
    sentences = []
    for ranks, parameters in odd.items():
        shown = ", ".join(parameters[:SHOWN]) + (
            f" and {len(parameters) - SHOWN} more" if len(parameters) > SHOWN else ""
        )
        if len(ranks) == 1:
            sentences.append(f"rank {ranks[0]} on {hosts[ranks[0]]} differs from the majority in {shown}")
        else:
            sentences.append(f"the ranks differ in {shown}, without a majority")
    return sentences


@cache
def _odd_numbers(device: torch.device) -> Tensor:
    numbers = hash64(np.arange(CHUNK + 1)) | np.uint64(1)
    return torch.from_numpy(numbers.view(np.int64)).to(device)
