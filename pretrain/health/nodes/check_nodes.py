"""Check of all nodes of a job before training: `python -m pretrain.node_check CONFIG`, one process per node.

1. report    each node inspects itself and sends its report to the head (the first node)     node_report.py
2. compare   the head compares versions, devices, memory and clocks, and notes missing nodes     compare.py
3. answer    every node receives the findings, and all exit with the same code
4. measure   without findings: bandwidth of an all-reduce, then of each pair around a ring       network.py

Exit codes: 0 no findings · 1 bad nodes · 2 invalid configuration · 75 bad nodes, which `--exclude-bad` added to
RUN/launch/exclude: requeued without them, the job can start.
"""

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import click

from pretrain.config import Config, load_config
from pretrain.distributed.process_exit import leave
from pretrain.errors import PretrainError, UserError
from pretrain.health.nodes.compare import NodeFinding, compare_nodes
from pretrain.health.nodes.node_report import GIB, LONGEST_REPORT, NodeReport, NodeRequirements, inspect_node
from pretrain.health.nodes.slurm_step import SlurmStep, read_slurm_step
from pretrain.health.watchdog import STALLED
from pretrain.plan.counts import count_parameters
from pretrain.storage.files import publish_file

BYTES_PER_PARAMETER = 12  # of a checkpoint, and of its snapshot in host memory
CACHE_FREE = GIB
NETWORK_TIMEOUT_S = 120.0


def requirements_of(config: Config, nodes: int) -> NodeRequirements:
    """Requirements of a run: disk space for one checkpoint, and memory for each node's share of its snapshot."""
    checkpoint = BYTES_PER_PARAMETER * count_parameters(config.model)
    free = {config.run.dir: checkpoint}
    if config.data.store.cache_dir is not None:
        free[config.data.store.cache_dir] = CACHE_FREE
    return NodeRequirements(checkpoint // nodes, free, config.engine.device == "cuda")


def collect(step: SlurmStep, own: NodeReport, token: str, wait_s: float) -> list[NodeFinding]:
    """On the head: receive all reports, compare them, send the findings to all."""
    reports, offsets = {0: own}, {0: 0.0}
    deadline = time.monotonic() + wait_s
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", step.port), backlog=1024))
        connections = []
        while len(reports) < len(step.nodes) and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with suppress(TimeoutError, PretrainError, OSError):
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(10)
                report = NodeReport.from_line(connection.makefile("rb").readline(LONGEST_REPORT))
                offset = report.clock - time.time()
                rank = step.nodes.index(report.node) if report.node in step.nodes else 0
                if rank and rank not in reports:
                    reports[rank], offsets[rank] = report, offset
                    connections.append(connection)
        findings = compare_nodes(step.nodes, reports, offsets, token)
        for connection in connections:
            with suppress(OSError):
                connection.sendall(json.dumps(findings).encode() + b"\n")
    return findings


def send(step: SlurmStep, report_now: Callable[[], NodeReport], wait_s: float) -> list[NodeFinding]:
    """On the other nodes: send the report, return the head's findings. Raises PretrainError if it is unreachable."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with socket.create_connection((step.head, step.port), timeout=10) as connection:
                connection.sendall(report_now().to_line())
                connection.settimeout(wait_s + 10)
                return [NodeFinding(*finding) for finding in json.loads(connection.makefile("rb").readline(2**24))]
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise PretrainError(f"{step.node} cannot reach the head, {step.head}:{step.port}: {error}") from error
            time.sleep(0.2)


def check(config: Config, step: SlurmStep, wait_s: float, slow: float) -> list[NodeFinding]:
    """The complete check, on every node; returns the same findings on all. The head prints the bandwidth.

    Raises PretrainError if this node cannot reach the head, or the network fails during the measurement.
    """
    requirements = requirements_of(config, len(step.nodes))
    records = Path(config.run.dir) / "launch"
    token_file = records / f".node-check-{step.start}.tmp"
    own = inspect_node(requirements, step.node)
    if step.rank:
        return send(step, lambda: replace(own, token=_read(token_file), clock=time.time()), wait_s) or _measured(
            step, config, slow
        )
    token = secrets.token_hex(8)
    with suppress(OSError):  # reported as a folder that is not writable
        records.mkdir(parents=True, exist_ok=True)
        token_file.write_text(token)
    try:
        findings = collect(step, replace(own, token=_read(token_file)), token, wait_s)
    finally:
        with suppress(OSError):
            token_file.unlink(missing_ok=True)
    return findings or _measured(step, config, slow)


def _measured(step: SlurmStep, config: Config, slow: float) -> list[NodeFinding]:
    from pretrain.health.nodes.network import describe, measure_network, slow_nodes

    os.environ.update(MASTER_ADDR=step.head, MASTER_PORT=str(step.port))
    measured = measure_network(step.rank, len(step.nodes), config.engine.device, NETWORK_TIMEOUT_S)
    if step.rank == 0:
        print(f"node check: {describe(measured, step.nodes)}", flush=True)
    parts = slow_nodes(measured.pairs, len(step.nodes), slow)
    return [
        NodeFinding(step.nodes[rank], f"network at {part:.0%} of the median bandwidth") for rank, part in parts.items()
    ]


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def to_exclude(findings: Sequence[NodeFinding], nodes: Sequence[str]) -> list[str]:
    """Nodes to exclude; none if more than half are bad: then the cause is not a node."""
    bad = sorted({finding.node for finding in findings})
    return bad if 2 * len(bad) <= len(nodes) else []


def write_exclude(path: Path, nodes: Sequence[str]) -> None:
    """Add nodes to those excluded by earlier starts, one per line."""
    known = (_read(path) or "").split()
    publish_file(path, "".join(f"{node}\n" for node in sorted({*known, *nodes})))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--exclude-bad", is_flag=True, help="Add bad nodes to RUN/launch/exclude and exit with 75.")
@click.option("--wait-s", default=120.0, show_default=True, help="Seconds to wait for the nodes' reports.")
@click.option(
    "--slow",
    default=0.5,
    show_default=True,
    help="Bandwidth below which a node is bad, as a fraction of the median; 0: never.",
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(config_file: Path, overrides: tuple[str, ...], exclude_bad: bool, wait_s: float, slow: float) -> None:
    """Check every node of this SLURM job; one process per node."""
    rank = os.environ.get("SLURM_PROCID", "0")
    try:
        config = load_config(config_file, overrides).config
        step = read_slurm_step(os.environ)
    except UserError as error:  # the same on every node
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
        leave(error.exit_code)
    try:
        findings = check(config, step, wait_s, slow)
    except PretrainError as error:
        print(f"error on {step.node}: {error}", file=sys.stderr)
        leave(error.exit_code)
    excluded = to_exclude(findings, step.nodes) if exclude_bad else []
    if step.rank == 0:
        for node, text in findings:
            print(f"node check: {node}: {text}", file=sys.stderr)
        if excluded:
            write_exclude(Path(config.run.dir) / "launch" / "exclude", excluded)
        print(f"node check: {_summary(findings, excluded, step.nodes)}", file=sys.stderr if findings else sys.stdout)
    leave(STALLED if excluded else int(bool(findings)))


def _summary(findings: Sequence[NodeFinding], excluded: Sequence[str], nodes: Sequence[str]) -> str:
    if not findings:
        return f"{len(nodes)} nodes are fit"
    bad = sorted({finding.node for finding in findings})
    if excluded:
        return f"{', '.join(excluded)} will be excluded; exiting with {STALLED}"
    return f"{len(bad)} of {len(nodes)} nodes are not fit: {', '.join(bad)}"
