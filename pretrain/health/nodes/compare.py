"""Comparison of a job's nodes: a pure function of their reports."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pretrain.health.nodes.node_report import GIB, NodeReport

MEMORY_DIFFERENCE = 0.1
SKEW_S = 5.0


class NodeFinding(NamedTuple):
    """One problem of one node."""

    node: str
    text: str


def compare_nodes(
    nodes: Sequence[str], reports: Mapping[int, NodeReport], offsets: Mapping[int, float], token: str
) -> list[NodeFinding]:
    """Findings from the reports by rank; `offsets`: seconds each clock was ahead of the head's when its report arrived."""
    findings = []
    for rank, node in enumerate(nodes):
        report = reports.get(rank)
        if report is None:
            findings.append(NodeFinding(node, f"did not report: node is down or cannot reach {nodes[0]}"))
            continue
        findings += [NodeFinding(node, problem) for problem in report.problems]
        if report.token != token:
            findings.append(NodeFinding(node, "does not see the head's files in the run folder, which must be shared"))
    present = {nodes[rank]: report for rank, report in sorted(reports.items())}
    for what in sorted({name for report in present.values() for name in report.versions}):
        findings += _unlike_most(what, {node: report.versions.get(what, "none") for node, report in present.items()})
    findings += _unlike_most("devices:", {node: _counted(report.devices) for node, report in present.items()})
    usual = statistics.median([report.memory for report in present.values()] or [0])
    for node, report in present.items():
        if abs(report.memory - usual) > MEMORY_DIFFERENCE * usual:
            findings.append(
                NodeFinding(node, f"{report.memory / GIB:.0f} GiB of memory, {usual / GIB:.0f} on the others")
            )
    middle = statistics.median([*offsets.values()] or [0.0])
    for rank, offset in sorted(offsets.items()):
        if abs(offset - middle) > SKEW_S:
            ahead = "ahead of" if offset > middle else "behind"
            findings.append(NodeFinding(nodes[rank], f"clock is {abs(offset - middle):.0f} s {ahead} the others"))
    return findings


def _unlike_most(what: str, values: Mapping[str, str]) -> list[NodeFinding]:
    """Nodes that differ from the majority; a tie is decided for the head, which comes first."""
    usual = Counter(values.values()).most_common(1)[0][0] if values else ""
    return [
        NodeFinding(node, f"{what} {value}, {usual} on the others") for node, value in values.items() if value != usual
    ]


def _counted(devices: Sequence[str]) -> str:
    return ", ".join(f"{count} × {name}" for name, count in sorted(Counter(devices).items())) or "none"
