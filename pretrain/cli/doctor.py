"""`pretrain doctor`: what this installation is, and what would go wrong with it."""

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
    """One line: fine, a limit to know of, or a fault."""

    level: str
    text: str


def findings() -> Iterator[CheckResult]:
    """Everything that is looked at."""
    yield CheckResult("ok", f"Python {platform.python_version()} on {platform.platform()}")
    for name in REQUIRED:
        found = _version(name)
        yield CheckResult("ok", f"{name} {found}") if found else CheckResult("fault", f"{name} is not installed")
    for name, extra in OPTIONAL.items():
        found = _version(name)
        hint = f"{name} is not installed: pip install '{OURS}[{extra}]' to use `pretrain {extra}`"
        yield CheckResult("ok", f"{name} {found}") if found else CheckResult("limit", hint)
    yield from _packages_in_the_way()
    yield from _devices()
    compiler = shutil.which("c++") or shutil.which("g++")
    yield (
        CheckResult("ok", f"C++ compiler {compiler}")
        if compiler
        else CheckResult("limit", "no C++ compiler: no engine.compile")
    )


def run_doctor() -> int:
    """Print the findings; 1 where there is a fault."""
    console = Console(highlight=False)
    marks = {"ok": "[green]✓", "limit": "[yellow]![/]", "fault": "[red]✗"}
    all_findings = list(findings())
    for finding in all_findings:
        console.print(marks[finding.level], end=" ")
        console.print(finding.text, markup=False, soft_wrap=True)
    return int(any(finding.level == "fault" for finding in all_findings))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages_in_the_way() -> Iterator[CheckResult]:
    """`launch` and `tokenizer` are common names: with two owners, which one is imported is chance."""
    owners = packages_distributions()
    for package in ("pretrain", "launch", "tokenizer"):
        others = sorted({owner for owner in owners.get(package, []) if owner != OURS})
        if others:
            hint = f"pip uninstall {' '.join(others)}, or a virtual environment of its own"
            yield CheckResult("fault", f"the package `{package}` is also installed by {', '.join(others)}: {hint}")
        else:
            yield CheckResult("ok", f"the package `{package}` is ours alone")


def _devices() -> Iterator[CheckResult]:
    import torch

    if not torch.cuda.is_available():
        yield CheckResult("limit", "no CUDA device: training runs on the CPU")
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield CheckResult("ok", f"GPU {number}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
