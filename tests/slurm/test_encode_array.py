"""Tokenizing as an array of jobs: what becomes of one element is its own affair.

Twice: with a shell script in place of `tokenizer encode`, where elements can be held until others are looked at, and with
the command itself, whose shards must be those of one process that nothing happened to.
"""

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.support.processes import ROOT, pretrain
from tests.support.slurm_cluster import Cluster

STAND_IN = """#!/bin/bash
# Called as python is: -m pretrain.cli tokenizer encode ARGUMENTS
task=$(sed -n 's/.*--task-id \\([0-9]*\\).*/\\1/p' <<<"$*")
case "$*" in
    *--plan*) echo 3 >"@out/plan" ;;
    *--merge*) cat "@out"/receipt-* >"@out/merged" ;;
    *)
        echo "$task" >>"@out/started"
        until [ -e "@out/go" ]; do sleep 0.1; done
        echo "$task" >"@out/receipt-$task"
        ;;
esac
"""


def test_an_element_that_is_killed_is_requeued_alone(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(STAND_IN.replace("@out", str(out)))
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    site = tmp_path / "cluster.yaml"
    site.write_text(yaml.safe_dump({"python": str(stand_in), "cpus_per_task": 1, "time": "0:10:00"}))
    command = [
        "launch",
        "slurm-encode",
        "--cluster",
        site,
        "--tasks",
        "3",
        "--records",
        tmp_path / "jobs",
        "--",
        "--out",
        out,
    ]
    jobs = submit(cluster, command)
    cluster.wait_for(lambda: started(out) == ["0", "1", "2"], "all elements started")
    assert cluster.state(jobs["merge"]) == "PENDING"
    element = f"{jobs['tasks']}_1"
    (node,) = cluster.nodes_of(element)
    # The node's other jobs are not to be hit: the elements share nodes.
    (victim,) = (
        pid
        for pid, line in cluster.processes(node).items()
        if line.startswith(f"/bin/bash {stand_in}") and "--task-id 1 " in line
    )
    os.kill(victim, signal.SIGKILL)
    cluster.wait_for(lambda: started(out) == ["0", "1", "1", "2"], "the element started again")
    (out / "go").touch()
    cluster.wait_for_state(jobs["merge"], "COMPLETED")
    assert (out / "merged").read_text() == "0\n1\n2\n"
    restarts = [cluster.show(f"{jobs['tasks']}_{number}")["Restarts"] for number in range(3)]
    assert restarts == ["0", "1", "0"]


def test_shards_of_an_array_with_a_killed_element_are_those_of_one_process(cluster: Cluster, tmp_path: Path) -> None:
    corpus, model, alone = tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "alone"
    corpus.mkdir()
    lines = [json.dumps({"text": f"line {number}: " + "abc def ghi " * 30}) for number in range(9_000)]
    (corpus / "a.jsonl").write_text("\n".join(lines) + "\n")
    ran = pretrain("tokenizer", "train", "--input", corpus, "--vocab-size", "300", "--output", model)
    assert ran.returncode == 0, ran.stderr
    arguments = ["--tokenizer", model / "tokenizer.model", "--input", corpus, "--task-megabytes", "0.5"]
    ran = pretrain("tokenizer", "encode", *arguments, "--output", alone, "--workers", "1")
    assert ran.returncode == 0, ran.stderr

    site, out = tmp_path / "cluster.yaml", tmp_path / "out"
    site.write_text(yaml.safe_dump({"python": sys.executable, "cpus_per_task": 1, "time": "0:10:00"}))
    records = ["--tasks", "3", "--records", tmp_path / "jobs"]
    command = ["launch", "slurm-encode", "--cluster", site, *records, "--", *arguments, "--output", out]
    jobs = submit(cluster, command)
    element = f"{jobs['tasks']}_1"
    killed: list[int] = []

    def kill() -> bool:
        """As soon as it is there: importing takes longer than looking."""
        for node in cluster.nodes_of(element):
            for pid, line in cluster.processes(node).items():
                if line.startswith(sys.executable) and "--task-id 1 " in line and not killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
        return bool(killed)

    cluster.wait_for(kill, "the element's process")
    cluster.wait_for_state(jobs["merge"], "COMPLETED")
    assert [cluster.show(f"{jobs['tasks']}_{number}")["Restarts"] for number in range(3)] == ["0", "1", "0"]
    assert digests(out) == digests(alone)


def submit(cluster: Cluster, command: Sequence[object]) -> dict[str, str]:
    """The numbers of the jobs by step."""
    done = subprocess.run(
        [sys.executable, "-m", "pretrain.cli", *map(str, command)],
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"(plan|tasks|merge) +job (\d+)", done.stdout))


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def started(out: Path) -> list[str]:
    """Elements that began, each as often as it did."""
    path = out / "started"
    return sorted(path.read_text().split()) if path.exists() else []
