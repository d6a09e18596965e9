"""`pretrain doctor`: checks of this installation."""

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import NamedTuple

from rich.console import Console

OURS = "pretrain-toolkit"
REQUIRED = ("torch", "deepspeed", "webdataset", "sentencepiece", "omegaconf", "numpy", "safetensors", "tensorboard")
OPTIONAL = {"transformers": "export", "tokenizers": "export"}


class CheckResult(NamedTuple):
    """One line; `level` is ok, limit or fault."""

    level: str
    text: str


def check_installation() -> Iterator[CheckResult]:
    """Run all checks."""
    yield CheckResult("ok", f"Python {platform.python_version()} on {platform.platform()}")
    for name in REQUIRED:
        found = _version(name)
        yield CheckResult("ok", f"{name} {found}") if found else CheckResult("fault", f"{name} is not installed")
    for name, extra in OPTIONAL.items():
        found = _version(name)
        hint = f"{name} is not installed: pip install '{OURS}[{extra}]' to use `pretrain {extra}`"
        yield CheckResult("ok", f"{name} {found}") if found else CheckResult("limit", hint)
    yield from _package_conflicts()
    yield from _devices()
    compiler = shutil.which("c++") or shutil.which("g++")
    yield (
        CheckResult("ok", f"C++ compiler {compiler}")
        if compiler
        else CheckResult("limit", "no C++ compiler: engine.compile=true does not work")
    )


def run_doctor() -> int:
    """Print all results. Returns 1 if one is a fault, else 0."""
    console = Console(highlight=False)
    marks = {"ok": "[green]✓", "limit": "[yellow]![/]", "fault": "[red]✗"}
    results = list(check_installation())
    for result in results:
        console.print(marks[result.level], end=" ")
        console.print(result.text, markup=False, soft_wrap=True)
    return int(any(result.level == "fault" for result in results))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _package_conflicts() -> Iterator[CheckResult]:
    """`launch` and `tokenizer` are common names; with two owners, the import order decides which one runs."""
    owners = packages_distributions()
    for package in ("pretrain", "launch", "tokenizer"):
        others = sorted({owner for owner in owners.get(package, []) if owner != OURS})
        if others:
            hint = f"pip uninstall {' '.join(others)}, or use a separate virtual environment"
            yield CheckResult("fault", f"the package `{package}` is also installed by {', '.join(others)}: {hint}")
        else:
            yield CheckResult("ok", f"the package `{package}` has no conflict")


def _devices() -> Iterator[CheckResult]:
    import torch

    if not torch.cuda.is_available():
        yield CheckResult("limit", "no CUDA device: training runs on the CPU")
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield CheckResult("ok", f"GPU {number}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
