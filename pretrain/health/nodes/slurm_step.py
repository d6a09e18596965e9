"""Nodes of a SLURM job step, from environment variables: a container may lack SLURM's commands."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

from pretrain.errors import UserError

PORT = "29400"
_PART = re.compile(r"(?:[^,\[\]]|\[[0-9,-]+\])+")


class SlurmStep(NamedTuple):
    """Step of one task per node, and this task's rank; the head is the first node."""

    nodes: tuple[str, ...]
    rank: int
    head: str  # address
    port: int
    start: str  # JOB-RESTART

    @property
    def node(self) -> str:
        """This node's name in SLURM."""
        return self.nodes[self.rank]


def read_slurm_step(environment: Mapping[str, str]) -> SlurmStep:
    """Read srun's variables. Raises UserError if the step does not have one task per node."""
    values = {name: environment.get(f"SLURM_{name}", "") for name in ("PROCID", "STEP_NUM_TASKS", "STEP_NODELIST")}
    if not all(values.values()):
        raise UserError("the node check must run as a step of a SLURM job", hint="srun --ntasks-per-node=1 python -m …")
    nodes = tuple(expand_nodelist(values["STEP_NODELIST"]))
    if len(nodes) != int(values["STEP_NUM_TASKS"]):
        raise UserError(
            f"{values['STEP_NUM_TASKS']} tasks were started on {len(nodes)} nodes", hint="srun --ntasks-per-node=1"
        )
    head = environment.get("MASTER_ADDR") or nodes[0]
    start = f"{environment.get('SLURM_JOB_ID', '0')}-{environment.get('SLURM_RESTART_COUNT', '0')}"
    return SlurmStep(nodes, int(values["PROCID"]), head, int(environment.get("MASTER_PORT", PORT)), start)


def expand_nodelist(nodelist: str) -> Iterator[str]:
    """Expand SLURM's compact node list, in its order: `a[1-2,07]b,c` to a1b, a2b, a07b, c.

    Raises UserError if malformed.
    """
    if _PART.sub("", nodelist).strip(",") or not nodelist:
        raise UserError(f"SLURM_STEP_NODELIST={nodelist!r} is not a node list")
    for part in _PART.findall(nodelist):
        texts = re.split(r"\[(.*?)\]", part)  # odd items are the ranges in brackets
        for choice in product(*(_numbers(text) if place % 2 else [text] for place, text in enumerate(texts))):
            yield "".join(choice)


def _numbers(ranges: str) -> list[str]:
    found = []
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return found
