"""Loading a cluster file: find it, apply `cluster.KEY=VALUE`, check its rules."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.slurm.cluster import Cluster
from launch.slurm.cluster_rules import find_problems
from pretrain.config.build import build_section
from pretrain.config.load import read_tree
from pretrain.errors import ConfigError, UserError

PREFIX = "cluster."
SHIPPED = Path(__file__).parents[2] / "configs" / "cluster"


def load_cluster(name: str, overrides: Sequence[str] = ()) -> Cluster:
    """Load a file, or NAME of configs/cluster; `overrides` are `KEY=VALUE`.

    Raises UserError if a file is missing, and ConfigError with all other problems.
    """
    problems: list[str] = []
    tree, _ = read_tree(find_file(name), [text for text in overrides if not _is_time(text)], problems)
    for text in filter(_is_time, overrides):
        tree["time"] = text.partition("=")[2]
    _refuse_numbers(tree, problems)
    cluster = build_section(Cluster, tree, "", problems, root=Cluster)
    assert isinstance(cluster, Cluster)
    problems += find_problems(cluster)
    if problems:
        raise ConfigError(problems, source=str(find_file(name)))
    return cluster


def find_file(name: str) -> Path:
    """`name` itself, or configs/cluster/NAME.yaml here or beside the package. Raises UserError if there is none."""
    folders = (Path("configs") / "cluster", SHIPPED)
    for path in (Path(name), *(folder / f"{name}.yaml" for folder in folders)):
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"--cluster {name} is neither a file nor a name in configs/cluster",
        hint=f"available: {', '.join(known) or 'none'}",
    )


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split into (run overrides, cluster overrides without their prefix `cluster.`)."""
    run = [text for text in overrides if not text.startswith(PREFIX)]
    return run, [text.removeprefix(PREFIX) for text in overrides if text.startswith(PREFIX)]


def resize(cluster: Cluster, nodes: int | None) -> Cluster:
    """Override the number of nodes, if given."""
    return cluster if nodes is None else dataclasses.replace(cluster, nodes=nodes)


def _is_time(override: str) -> bool:
    """A time limit bypasses the YAML parser, which reads 1:30:00 as a base-60 number."""
    return override.startswith("time=")


def _refuse_numbers(tree: dict[str, Any], problems: list[str]) -> None:
    """Reject a time or size that YAML parsed as a number: the original text is lost."""
    for key, example in (("time", "1:30:00"), ("mem", "900G")):
        if isinstance(tree.get(key), int | float):
            problems.append(
                f'{key}={tree.pop(key)} was parsed as a number\n    hint: quote it, e.g. {key}: "{example}"'
            )
