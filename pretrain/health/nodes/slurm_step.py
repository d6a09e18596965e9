"""Which nodes a step of a SLURM job has, and which one this is: from variables, since a container may lack SLURM's programs."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

from pretrain.errors import UserError

PORT = "29400"
_PART = re.compile(r"(?:[^,\[\]]|\[[0-9,-]+\])+")


class SlurmStep(NamedTuple):
    """This process among those of the check: one a node, the head first."""

    nodes: tuple[str, ...]
    rank: int
    head: str  # address
    port: int
    start: str  # which start of which job

    @property
    def node(self) -> str:
        """This node's name in SLURM."""
        return self.nodes[self.rank]


def find_place(environment: Mapping[str, str]) -> SlurmStep:
    """From what srun exports. Raises UserError where it is not one task a node."""
    values = {name: environment.get(f"SLURM_{name}", "") for name in ("PROCID", "STEP_NUM_TASKS", "STEP_NODELIST")}
    if not all(values.values()):
        raise UserError("the check of nodes runs as a step of a SLURM job", hint="srun --ntasks-per-node=1 python -m …")
    nodes = tuple(expand(values["STEP_NODELIST"]))
    if len(nodes) != int(values["STEP_NUM_TASKS"]):
        raise UserError(
            f"{values['STEP_NUM_TASKS']} tasks were started on {len(nodes)} nodes", hint="srun --ntasks-per-node=1"
        )
    head = environment.get("MASTER_ADDR") or nodes[0]
    start = f"{environment.get('SLURM_JOB_ID', '0')}-{environment.get('SLURM_RESTART_COUNT', '0')}"
    return SlurmStep(nodes, int(values["PROCID"]), head, int(environment.get("MASTER_PORT", PORT)), start)


def expand(nodelist: str) -> Iterator[str]:
    """Names of SLURM's short form, in its order: `a[1-2,07]b,c` is a1b, a2b, a07b, c.

    Raises UserError for anything else.
    """
    if _PART.sub("", nodelist).strip(",") or not nodelist:
        raise UserError(f"SLURM_STEP_NODELIST={nodelist!r} is not a list of nodes")
    for part in _PART.findall(nodelist):
        texts = re.split(r"\[(.*?)\]", part)  # what stands between brackets at odd places
        for choice in product(*(_numbers(text) if place % 2 else [text] for place, text in enumerate(texts))):
            yield "".join(choice)


def _numbers(ranges: str) -> list[str]:
    found = []
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return found
