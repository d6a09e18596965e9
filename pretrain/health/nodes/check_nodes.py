"""Looks at every node of a job before it trains, and names the one at fault: `python -m pretrain.node_check CONFIG`.

One process a node.

1. report    each node looks at itself, and sends a line to the head (the first node)          node_report.py
2. judge     the head compares versions, devices, memory and clocks; who does not come is missing      node_judge.py
3. answer    every node gets the list of what is wrong, and all end with the same exit code
4. measure   where nothing is wrong: an all-reduce over all nodes, then around the ring    node_network.py

Exit codes: 0 all are fit · 1 one is not · 2 the configuration is at fault · 75 as 1, and `--exclude-bad` added the nodes to
RUN/launch/exclude: requeued without them, the job may start.
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
from pretrain.health.nodes.compare import NodeFinding, judge
from pretrain.health.nodes.node_report import GIB, LONGEST_REPORT, Needs, Report, look
from pretrain.health.nodes.slurm_step import SlurmStep, find_place
from pretrain.health.watchdog import STALLED
from pretrain.plan.counts import count_parameters
from pretrain.storage.files import publish_file

BYTES_A_PARAMETER = 12  # of a checkpoint, and of the copy in memory that it is written from
CACHE_FREE = GIB
NETWORK_TIMEOUT_S = 120.0


def needs_of(config: Config, nodes: int) -> Needs:
    """What the run must find: room for one more checkpoint, and for each node's share of its copy in memory."""
    checkpoint = BYTES_A_PARAMETER * count_parameters(config.model)
    free = {config.run.dir: checkpoint}
    if config.data.store.cache_dir is not None:
        free[config.data.store.cache_dir] = CACHE_FREE
    return Needs(checkpoint // nodes, free, config.engine.device == "cuda")


def collect(place: SlurmStep, mine: Report, token: str, wait_s: float) -> list[NodeFinding]:
    """On the head: everybody's report, the verdict, and the answer to everybody."""
    reports, offsets = {0: mine}, {0: 0.0}
    deadline = time.monotonic() + wait_s
    with ExitStack() as open_now:
        server = open_now.enter_context(socket.create_server(("", place.port), backlog=1024))
        connections = []
        while len(reports) < len(place.nodes) and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with suppress(TimeoutError, PretrainError, OSError):
                connection = open_now.enter_context(server.accept()[0])
                connection.settimeout(10)
                report = Report.from_line(connection.makefile("rb").readline(LONGEST_REPORT))
                offset = report.clock - time.time()
                rank = place.nodes.index(report.node) if report.node in place.nodes else 0
                if rank and rank not in reports:
                    reports[rank], offsets[rank] = report, offset
                    connections.append(connection)
        findings = judge(place.nodes, reports, offsets, token)
        for connection in connections:
            with suppress(OSError):
                connection.sendall(json.dumps(findings).encode() + b"\n")
    return findings


def send(place: SlurmStep, report_now: Callable[[], Report], wait_s: float) -> list[NodeFinding]:
    """On the others: their report to the head, and its answer. Raises PretrainError where it cannot be reached."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with socket.create_connection((place.head, place.port), timeout=10) as connection:
                connection.sendall(report_now().to_line())
                connection.settimeout(wait_s + 10)
                return [NodeFinding(*finding) for finding in json.loads(connection.makefile("rb").readline(2**24))]
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise PretrainError(
                    f"{place.node} does not reach the head, {place.head}:{place.port}: {error}"
                ) from error
            time.sleep(0.2)


def check(config: Config, place: SlurmStep, wait_s: float, slow: float) -> list[NodeFinding]:
    """Everything, on every node; the findings are the same on all. Prints what was measured, on the head.

    Raises PretrainError on a node that does not reach the head, or where the network fails while it is measured.
    """
    needs = needs_of(config, len(place.nodes))
    records = Path(config.run.dir) / "launch"
    meeting = records / f".node-check-{place.start}.tmp"
    mine = look(needs, place.node)
    if place.rank:
        return send(place, lambda: replace(mine, token=_read(meeting), clock=time.time()), wait_s) or _measured(
            place, config, slow
        )
    token = secrets.token_hex(8)
    with suppress(OSError):  # then the report says that the folder cannot be written
        records.mkdir(parents=True, exist_ok=True)
        meeting.write_text(token)
    try:
        findings = collect(place, replace(mine, token=_read(meeting)), token, wait_s)
    finally:
        with suppress(OSError):
            meeting.unlink(missing_ok=True)
    return findings or _measured(place, config, slow)


def _measured(place: SlurmStep, config: Config, slow: float) -> list[NodeFinding]:
    from pretrain.health.nodes.network import describe, measure, slow_nodes

    os.environ.update(MASTER_ADDR=place.head, MASTER_PORT=str(place.port))
    measured = measure(place.rank, len(place.nodes), config.engine.device, NETWORK_TIMEOUT_S)
    if place.rank == 0:
        print(f"node check: {describe(measured, place.nodes)}", flush=True)
    parts = slow_nodes(measured.pairs, len(place.nodes), slow)
    return [
        NodeFinding(place.nodes[rank], f"its network has {part:.0%} of the speed that is usual here")
        for rank, part in parts.items()
    ]


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def to_exclude(findings: Sequence[NodeFinding], nodes: Sequence[str]) -> list[str]:
    """The nodes at fault; none where it is more than half of them, since then it is not the nodes."""
    bad = sorted({finding.node for finding in findings})
    return bad if 2 * len(bad) <= len(nodes) else []


def write_exclude(path: Path, nodes: Sequence[str]) -> None:
    """Add nodes to those that earlier starts left out, one a line."""
    known = (_read(path) or "").split()
    publish_file(path, "".join(f"{node}\n" for node in sorted({*known, *nodes})))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--exclude-bad", is_flag=True, help="Write the nodes at fault to RUN/launch/exclude, and end with 75.")
@click.option("--wait-s", default=120.0, show_default=True, help="Seconds that a node may take to answer.")
@click.option(
    "--slow", default=0.5, show_default=True, help="A node with less than this part of the usual speed; 0 none."
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(config_file: Path, overrides: tuple[str, ...], exclude_bad: bool, wait_s: float, slow: float) -> None:
    """Look at every node of this SLURM job: one process a node."""
    rank = os.environ.get("SLURM_PROCID", "0")
    try:
        config = load_config(config_file, overrides).config
        place = find_place(os.environ)
    except UserError as error:  # the same on every node
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
        leave(error.exit_code)
    try:
        findings = check(config, place, wait_s, slow)
    except PretrainError as error:
        print(f"error on {place.node}: {error}", file=sys.stderr)
        leave(error.exit_code)
    excluded = to_exclude(findings, place.nodes) if exclude_bad else []
    if place.rank == 0:
        for node, text in findings:
            print(f"node check: {node}: {text}", file=sys.stderr)
        if excluded:
            write_exclude(Path(config.run.dir) / "launch" / "exclude", excluded)
        print(f"node check: {_verdict(findings, excluded, place.nodes)}", file=sys.stderr if findings else sys.stdout)
    leave(STALLED if excluded else int(bool(findings)))


def _verdict(findings: Sequence[NodeFinding], excluded: Sequence[str], nodes: Sequence[str]) -> str:
    if not findings:
        return f"{len(nodes)} nodes are fit"
    bad = sorted({finding.node for finding in findings})
    if excluded:
        return f"{', '.join(excluded)} will be left out; ending with exit code {STALLED}"
    return f"{len(bad)} of {len(nodes)} nodes are not fit: {', '.join(bad)}"
