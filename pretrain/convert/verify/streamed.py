"""Running a model that does not fit in memory: each module's parameters are loaded for its forward only.

The model is built on torch's `meta` device, whose tensors have no storage. Hooks load a module's own parameters before its
forward and drop them afterwards, so the model's own code runs with one or two tensors in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Load = Callable[[str], Tensor]


@contextmanager
def streamed(model: nn.Module, load: Load) -> Iterator[None]:
    """Makes forward passes work within the context. `load(name)` returns a parameter; a tied one has its first name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    handles = []
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if own:
            handles.append(module.register_forward_pre_hook(_load_hook(own, names, load)))
            handles.append(module.register_forward_hook(_drop_hook(own)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _load_hook(own: dict[str, nn.Parameter], names: dict[int, str], load: Load) -> Callable[..., None]:
    def load_parameters(module: nn.Module, _arguments: Any) -> None:
        for key, parameter in own.items():
            setattr(module, key, nn.Parameter(load(names[id(parameter)]), requires_grad=False))

    return load_parameters


def _drop_hook(own: dict[str, nn.Parameter]) -> Callable[..., None]:
    def drop_parameters(module: nn.Module, _arguments: Any, _result: Any) -> None:
        for key, parameter in own.items():
            setattr(module, key, parameter)

    return drop_parameters
