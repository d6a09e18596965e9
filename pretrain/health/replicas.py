"""Whether all processes hold the same weights: at ZeRO stages 0 to 2 each has a copy of the model, and copies can part.

A bit that flips in memory, a device that computes wrongly, a transfer that lost something: none of them is an error to
anybody, and the loss may look fine. The bits of each parameter are hashed on the device, in integers and therefore exactly,
and the hashes compared. The check comes between backward and update, because at stages 1 and 2 every update replaces the
copies by what the owners of the masters send.
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

CHUNK = 1 << 20  # elements that are hashed at once; bounds the memory that it takes
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SHOWN = 4


def compare_replicas(model: nn.Module, step: int) -> None:
    """Raise TrainingError on every rank where one holds other weights than the majority. A collective."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    hashes = torch.stack([hash_bits(parameter) for parameter in parameters]).tolist()
    digest = hashlib.sha256(np.array(hashes).tobytes()).hexdigest()
    if len(set(gather_to_all(digest))) == 1:
        return
    hosts, everyone = zip(*gather_to_all((socket.gethostname(), hashes)), strict=True)
    error = TrainingError(
        f"step {step}: " + "; ".join(differences(names, everyone, hosts)),
        hint="nothing was saved since this step began; the same command goes on from the newest checkpoint. Leave that machine "
        "out until its memory and its device are tested (nvidia-smi -q -d ECC)",
    )
    error.everywhere = True
    raise error


@torch.no_grad()
def hash_bits(tensor: Tensor) -> Tensor:
    """A 64-bit hash of a tensor's bits, as an int64 scalar on its device.

    h = h · m + Σ wᵢ xᵢ over chunks, modulo 2⁶⁴, with odd wᵢ and m: a change of one element always changes it, any other
    with probability 1 - 2⁻⁶³ or so. Sums of integers don't depend on their order.
    """
    flat = tensor.detach().reshape(-1).view(BITS[tensor.element_size()])
    result = torch.zeros((), dtype=torch.int64, device=tensor.device)
    factors = _odd_numbers(tensor.device)
    for start in range(0, flat.numel(), CHUNK):
        chunk = flat[start : start + CHUNK].to(torch.int64)
        result = result * factors[0] + (chunk * factors[1 : len(chunk) + 1]).sum()
    return result


def differences(names: Sequence[str], hashes: Sequence[Sequence[int]], hosts: Sequence[str]) -> list[str]:
    """A sentence for each rank that is not of the majority in a parameter; `hashes` by rank, then by parameter.

    Where no value has a majority (two processes, always) all ranks that disagree are named together.
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
            sentences.append(f"rank {ranks[0]} on {hosts[ranks[0]]} holds other weights than the majority in {shown}")
        else:
            sentences.append(f"the ranks hold different weights in {shown}, and no majority says which are right")
    return sentences


@cache
def _odd_numbers(device: torch.device) -> Tensor:
    numbers = hash64(np.arange(CHUNK + 1)) | np.uint64(1)
    return torch.from_numpy(numbers.view(np.int64)).to(device)
