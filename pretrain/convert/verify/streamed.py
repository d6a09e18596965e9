"""Running a model whose weights do not fit: each module's parameters exist only while it runs.

The model is made on torch's `meta` device, where a tensor has a shape and no elements. Hooks fill a module's own
parameters before its forward and empty them after it, so that the model's own code runs, and one tensor or two are in
memory at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Load = Callable[[str], Tensor]


@contextmanager
def streamed(model: nn.Module, load: Load) -> Iterator[None]:
    """Within the context the model's forward works. `load(name)` gives a parameter; a tied one has its first name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    handles = []
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if own:
            handles.append(module.register_forward_pre_hook(_filling(own, names, load)))
            handles.append(module.register_forward_hook(_emptying(own)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _filling(own: dict[str, nn.Parameter], names: dict[int, str], load: Load) -> Callable[..., None]:
    def fill(module: nn.Module, _arguments: Any) -> None:
        for key, parameter in own.items():
            setattr(module, key, nn.Parameter(load(names[id(parameter)]), requires_grad=False))

    return fill


def _emptying(own: dict[str, nn.Parameter]) -> Callable[..., None]:
    def empty(module: nn.Module, _arguments: Any, _result: Any) -> None:
        for key, parameter in own.items():
            setattr(module, key, parameter)

    return empty
