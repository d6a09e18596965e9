"""Faults in real runs, without test code in the product: Python imports this file by itself where its folder is in PYTHONPATH.

    CHAOS="flip_weight:rank=1,step=6 slow_step:seconds=2"

names faults with their arguments, which are numbers or words. A fault is a function of the module that it changes, called
when that module has just been imported; the decorator names the module.
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

Fault = Callable[..., None]
FAULTS: dict[str, tuple[str, Fault]] = {}
RANK = int(os.environ.get("RANK") or 0)


def fault(module: str) -> Callable[[Fault], Fault]:
    """Register a fault of a module under the function's name."""

    def register(function: Fault) -> Fault:
        FAULTS[function.__name__] = (module, function)
        return function

    return register


@fault("pretrain.training.batches")
def hang_in_data(batches: ModuleType, rank: int, step: int, seconds: float = 1e6) -> None:
    """The batches of a step come late, or never."""
    original = batches.BatchLoader.next

    def late(self: Any, progress: Any) -> Any:
        if rank == RANK and progress.step + 1 == step:
            time.sleep(seconds)
        return original(self, progress)

    batches.BatchLoader.next = late


@fault("pretrain.distributed.engine")
def slow_step(engine: ModuleType, seconds: float, rank: int = -1) -> None:
    """Every forward takes so much longer, on one rank or on all."""
    original = engine.Engine._loss

    def slow(self: Any, batch: Any) -> Any:
        if rank in (-1, RANK):
            time.sleep(seconds)
        return original(self, batch)

    engine.Engine._loss = slow


@fault("pretrain.distributed.engine")
def flip_weight(engine: ModuleType, rank: int, step: int, name: str, bit: int = 0) -> None:
    """Flip one bit of the first element of a parameter before the given step of this process (counted from 1)."""
    import torch

    original, steps = engine.Engine.train_step, 0

    def flipped(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if rank == RANK and steps == step:
            dict(self.model.named_parameters())[name].data.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << bit)
        return original(self, *arguments, **options)

    engine.Engine.train_step = flipped


class _Patcher(importlib.abc.MetaPathFinder):
    """Finds modules as the others do, and runs their faults at the end of their import."""

    def __init__(self, faults: dict[str, list[Callable[[ModuleType], None]]]) -> None:
        self.faults = faults

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        faults = self.faults.pop(name, None)
        if faults is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None, name
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            for change in faults:
                change(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _value(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _install(wanted: str) -> None:
    faults: dict[str, list[Callable[[ModuleType], None]]] = {}
    for entry in wanted.split():
        name, _, arguments = entry.partition(":")
        module, function = FAULTS[name]
        given = dict(argument.split("=", 1) for argument in arguments.split(",") if argument)
        faults.setdefault(module, []).append(partial(function, **{key: _value(text) for key, text in given.items()}))
    sys.meta_path.insert(0, _Patcher(faults))


if os.environ.get("CHAOS"):
    for name in ("chaos_kills", "chaos_samples", "chaos_storage"):
        importlib.import_module(name)  # registers its faults
    _install(os.environ["CHAOS"])
