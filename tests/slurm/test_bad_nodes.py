"""The check of the nodes on a real cluster, alone and before a training."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.slurm_cluster import Cluster
from tests.support.slurm_runs import SlurmRun

SCRIPT = """#!/bin/bash
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29444 GLOO_SOCKET_IFNAME=@interface
export OMP_NUM_THREADS=1 PYTHONPATH=@root
srun --ntasks-per-node=1 --kill-on-bad-exit=0 @python -m pretrain.node_check @config --slow 0 @arguments
"""


@pytest.fixture
def check(cluster: Cluster, config: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run it on three nodes; gives the exit code and what was printed."""

    def run(*arguments: str) -> tuple[int, str]:

        script, output = tmp_path / "check.sh", tmp_path / "check.log"
        words = {
            "@interface": "eth0" if cluster.layout.isolated else "lo",
            "@root": str(ROOT),
            "@python": sys.executable,
            "@config": str(config),
            "@arguments": " ".join([f"run.dir={tmp_path / 'run'}", *arguments]),
        }
        text = SCRIPT
        for name, value in words.items():
            text = text.replace(name, value)
        script.write_text(text)
        output.unlink(missing_ok=True)
        job = cluster.submit("--nodes=3", "--ntasks-per-node=1", f"--output={output}", script)
        cluster.wait_for_state(job, "COMPLETED", "FAILED", timeout=400)
        return int(cluster.show(job)["ExitCode"].split(":")[0]), output.read_text()

    return run


def test_three_alike_nodes_are_fit_and_their_network_is_measured(check: Callable[..., tuple[int, str]]) -> None:
    code, said = check()
    assert code == 0, said
    assert "all-reduce of 16 MiB over 3 nodes at" in said and "3 nodes are fit" in said
    assert "slowest neighbours n" in said


def test_a_full_disk_of_one_node_is_named_and_the_node_left_out(
    cluster: Cluster, check: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """A disk of its own, too small for the cache."""
    if not cluster.layout.isolated:
        pytest.skip("a disk of one node alone needs namespaces")
    cache = tmp_path / "cache"
    cache.mkdir()
    cluster.exec("n2", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(cache))
    code, said = check("--exclude-bad", f"data.store.cache_dir={cache}")
    cluster.exec("n2", "umount", str(cache))
    assert code == 75, said
    assert f"node check: n2: {cache} has 0.0 GiB free, 1.0 needed" in said
    assert "node check: n1:" not in said and "node check: n3:" not in said
    assert (tmp_path / "run" / "launch" / "exclude").read_text() == "n2\n"
    assert not list((tmp_path / "run" / "launch").glob(".*"))
    code, said = check(f"data.store.cache_dir={cache}")
    assert code == 0, said


@pytest.mark.slow
def test_a_run_whose_node_is_not_fit_starts_on_others(
    cluster: Cluster, launch: Callable[..., SlurmRun], undisturbed: dict[int, float], tmp_path: Path
) -> None:
    if not cluster.layout.isolated:
        pytest.skip("a disk of one node alone needs namespaces")
    cache = tmp_path / "cache"
    cache.mkdir()
    cluster.exec("n2", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(cache))
    run = launch(node_check=True)
    run.submit(f"data.store.cache_dir={cache}")
    run.wait_done(timeout=600)
    cluster.exec("n2", "umount", str(cache))
    assert cluster.nodes_of(run.job) == ["n1", "n3"], run.describe()
    assert run.attempt == 1 and run.losses == undisturbed


def test_outside_a_job_it_says_what_to_type(config: Path) -> None:

    done = subprocess.run(
        [sys.executable, "-m", "pretrain.node_check", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "a step of a SLURM job" in done.stderr and "hint: srun --ntasks-per-node=1" in done.stderr
