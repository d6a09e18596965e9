"""States of a process's random generators as plain JSON: resuming unpickles nothing."""

import base64
import random
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of Python's, NumPy's and torch's generators, and of the GPU's on a GPU run."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()},
        "torch": _encode(torch.get_rng_state()),
        "cuda": _encode(torch.cuda.get_rng_state())
        if device.type == "cuda"
        else None,  # a CPU run must not touch a GPU
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore states from `rng_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy_state = {**state["numpy"], "key": np.array(state["numpy"]["key"], dtype=np.uint32)}
    np.random.set_state({"bit_generator": "MT19937", "state": numpy_state, "has_gauss": 0, "gauss": 0.0})
    torch.set_rng_state(_decode(state["torch"]))
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(_decode(state["cuda"]))


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
