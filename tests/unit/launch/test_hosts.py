import shlex
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from launch.hosts import Host, format_hostfile, host_commands, launch_hosts, read_hostfile
from pretrain.cli.main import cli
from pretrain.errors import UserError
from pretrain.run_folder import RunFolder
from tests.support.repository import ROOT
from tests.support.runs import make_run
from tests.support.slurm_stand_ins import StandIns, slurm

__all__ = ["slurm"]
# Runs on this machine what was meant for another.
HERE = ("bash", "-c", 'eval "$2"', "ssh")


def write(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    text = "# ours\nnode1 slots=8\n\nme@node2   slots = 8  # fast\n10.0.0.3 slots=8\n"
    assert read_hostfile(write(tmp_path, text)) == [Host("node1", 8), Host("me@node2", 8), Host("10.0.0.3", 8)]
    assert read_hostfile(write(tmp_path, "node1\nnode2")) == [Host("node1", 1), Host("node2", 1)]


def test_what_is_written_is_read_by_us_and_by_deepspeed(tmp_path: Path) -> None:
    hosts = [Host("n1", 4), Host("n2", 4)]
    path = write(tmp_path, format_hostfile(hosts))
    assert read_hostfile(path) == hosts
    program = (
        "import sys; from deepspeed.launcher.runner import fetch_hostfile; print(dict(fetch_hostfile(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.splitlines()[-1] == "{'n1': 4, 'n2': 4}"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "lists no machine"),
        ("n1 slots=0", "is not NAME slots=N"),
        ("n1 gpus=3", "is not NAME slots=N"),
        ("-oProxyCommand=x slots=1", "is not NAME slots=N"),
        ("n1;rm slots=1", "is not NAME slots=N"),
        ("n1 slots=2\nn1 slots=2", "n1 is listed 2 times"),
        ("n1 slots=2\nn2 slots=3", "slots differ"),
    ],
)
def test_a_hostfile_that_cannot_be_used(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        read_hostfile(write(tmp_path, text))
    assert part in str(caught.value)


def test_every_machine_is_told_its_number_and_the_head() -> None:
    from torch.distributed.run import get_args_parser

    commands = host_commands(
        "my run.yaml",
        ["run.seed=3"],
        [Host("me@n1", 4), Host("n2", 4)],
        port=29501,
        environment={"NCCL_DEBUG": "INFO it's", "HOME": "/root", "PYTHONPATH": "/code"},
        folder=Path("/my folder"),
        logs=Path("/my run/logs"),
    )
    for rank, command in enumerate(commands):
        place, _, rest = command.partition(" && exec ")
        assert place == "cd '/my folder'"
        words = shlex.split(rest)
        assert words[:3] == ["env", "NCCL_DEBUG=INFO it's", "PYTHONPATH=/code"]
        assert words[3:7] == [sys.executable, "-m", "launch.agent", f"/my run/logs/torchrun-{rank}.log"]
        options = get_args_parser().parse_args(words[7:])
        assert (options.nnodes, options.node_rank, options.nproc_per_node) == ("2", rank, "4")
        assert (options.master_addr, options.master_port, options.rdzv_backend) == ("n1", 29501, "static")
        assert options.training_script_args == ["my run.yaml", "run.seed=3"]


def test_a_dry_run_prints_what_can_be_pasted(tmp_path: Path) -> None:
    hostfile = write(tmp_path, "n1 slots=1\nn2 slots=1")
    result = CliRunner().invoke(
        cli, ["launch", "hosts", "configs/quickstart.yaml", "--hostfile", str(hostfile), "--dry-run"]
    )
    lines = result.stdout.splitlines()
    assert [shlex.split(line)[:5] for line in lines] == [
        ["ssh", "-tt", "-o", "BatchMode=yes", name] for name in ("n1", "n2")
    ]


def test_two_agents_meet_and_train(tmp_path: Path) -> None:
    """The real torchrun twice; only ssh is missing."""
    config = make_run(tmp_path, schedule={"total_steps": 3, "warmup_steps": 1})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hostfile = write(tmp_path, "127.0.0.1 slots=1\nlocalhost slots=1")
    command = [sys.executable, "-m", "pretrain.cli", "launch", "hosts", str(config), "--hostfile", str(hostfile)]
    command += ["--port", str(port), "--ssh", shlex.join(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "status").read_text() == "done\n"
    assert "2 processes" in (tmp_path / "run" / "logs" / "train.log").read_text()


def test_a_machine_that_fails_ends_the_others(tmp_path: Path) -> None:
    commands = [f"touch {tmp_path}/a; exec sleep 100", f"while [ ! -e {tmp_path}/a ]; do sleep 0.1; done; exit 9"]
    assert launch_hosts(commands, [Host("a", 1), Host("b", 1)], RunFolder(tmp_path), HERE) == 9


def test_a_signal_becomes_the_stop_file(tmp_path: Path) -> None:
    import os
    import signal

    wait = f"while [ ! -e {tmp_path}/stop ]; do sleep 0.1; done"

    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    commands = [f"touch {tmp_path}/ready; {wait}", wait]
    assert launch_hosts(commands, [Host("a", 1), Host("b", 1)], RunFolder(tmp_path), HERE) == 0
    assert not (tmp_path / "stop").exists()


def test_the_nodes_of_an_allocation_become_a_hostfile(
    slurm: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hosts"
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    assert CliRunner().invoke(cli, ["launch", "hostfile", str(path), "--slots=8"]).exit_code != 0
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    CliRunner().invoke(cli, ["launch", "hostfile", str(path), "--slots=8"], catch_exceptions=False)
    assert path.read_text() == "n1 slots=8\nn2 slots=8\n"
