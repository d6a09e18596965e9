"""A real SLURM cluster on one machine: slurmctld, and a slurmd a node, from the Debian packages.

    with Cluster(nodes=3) as cluster:
        job = cluster.submit(script)
        cluster.power_off("n2")

As root each node has a network, host name, process table and /dev/shm of its own, and shares the file system: it can lose
its power (everything on it dies at once, and nobody is told) or its cable (everything on it goes on). Without root the
nodes differ by port alone; those two need root. All daemons are children that die with this process, however it dies.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from tests.support.slurm_config import Layout, cgroup_conf, hosts, slurm_conf
from tests.support.slurm_network import Network

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "setpriv")
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
SLOTS = 50  # clusters at a time on one machine
# PID 1 of a node: its end is the end of everything on the node.
NODE = """
hostname "$1"; mount --bind "$2/hosts" /etc/hosts; mount -t tmpfs none /dev/shm
slurmd -N "$1"; trap : TERM HUP INT; while :; do sleep 3600 & wait $!; done
"""
# FAILED and its relatives are ends as well, but none that a test waits for by accident.
ENDS = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
)


def missing() -> list[str]:
    """Programs that this machine lacks."""
    return [name for name in NEEDED if shutil.which(name, path=SEARCH) is None]


class Cluster:
    """Up between `__enter__` and `__exit__`. Logs of the daemons lie in `folder`."""

    def __init__(self, nodes: int = 3, cpus: int = 4) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._slot_lock, slot = _take_slot()
        self.layout = Layout(self.folder, nodes, cpus, isolated=os.getuid() == 0, slot=slot)
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SEARCH}
        for name in [name for name in self.environment if name.startswith(("SLURM_JOB", "SBATCH_"))]:
            del self.environment[name]  # tests may themselves run in a job
        self._network = Network(self.layout)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._stop()
        self._slot_lock.close()
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str | Path, check: bool = True, timeout: float = 300) -> str:
        """What a command printed, as a user on the login node would run it."""
        done = subprocess.run(
            [str(part) for part in command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str | Path) -> str:
        """A job's id, from `sbatch --parsable ARGUMENTS`."""
        return self.run("sbatch", "--parsable", *arguments).split(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`; values with spaces lose what follows the first."""
        shown: list[str] = []

        def answered() -> bool:  # a controller on a busy machine may take longer than a command waits
            shown[:] = self.run("scontrol", "-d", "show", "job", job, check=False).split()
            return bool(shown)

        self.wait_for(answered, f"an answer about job {job}", 120)
        return dict(reversed([part.split("=", 1) for part in shown if "=" in part]))

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, …"""
        return self.show(job)["JobState"]

    def nodes_of(self, job: str) -> list[str]:
        """Nodes that a job runs on, its head first."""
        return self.run("scontrol", "show", "hostnames", self.show(job)["NodeList"]).split()

    def wait_for(self, reached: Callable[[], bool], what: str, timeout: float = 600) -> None:
        """Until something holds; fails with `what` and the queue when it does not."""
        deadline = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > deadline:
                shown = self.run("squeue", check=False), self.run("sinfo", "-N", "-l", check=False)
                raise AssertionError("\n".join([f"not within {timeout:.0f} s: {what}", *shown]))
            time.sleep(0.2)

    def wait_for_state(self, job: str, *states: str, timeout: float = 600) -> str:
        """Until a job is in one of `states`; fails at once where it ended in another way."""
        found: list[str] = []

        def reached() -> bool:
            found.append(self.state(job))
            assert found[-1] in states or found[-1] not in ENDS, f"job {job} is {found[-1]}, not {states}"
            return found[-1] in states

        self.wait_for(reached, f"job {job} {' or '.join(states)}", timeout)
        return found[-1]

    def exec(self, node: str, *command: str, check: bool = True) -> str:
        """What a command printed that ran on a node."""
        if not self.layout.isolated:
            return self.run(*command, check=check)
        return self.run(
            "nsenter", "-t", str(self._init(node)), "-n", "-u", "-i", "-m", "-p", "--", *command, check=check
        )

    def processes(self, node: str) -> dict[int, str]:
        """Command lines on a node by process id of the host; without namespaces, those of its jobs alone."""
        if self.layout.isolated:
            pids = [int(pid) for pid in self.run("ip", "netns", "pids", self._network.namespace(node)).split()]
        else:
            pids = self._processes_with(f"SLURMD_NODENAME={node}")
        found = {}
        for pid in pids:
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found

    def power_off(self, node: str) -> None:
        """As if its plug were pulled: first its cable, since a machine without power does not say goodbye to its peers."""
        self._network.pull(node)
        self._end(node)
        self.wait_for(lambda: not self.processes(node), f"{node} off")

    def power_on(self, node: str) -> None:
        """Start a node that is off. It registers by itself."""
        self._network.plug(node)
        layout = self.layout
        (self.folder / f"slurmd-{node}.pid").unlink(missing_ok=True)
        namespaces = ("unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        inside = (
            "nsenter",
            f"--net=/run/netns/{self._network.namespace(node)}",
            *namespaces,
            "bash",
            "-c",
            NODE,
            "node",
        )
        command = [*inside, node, str(layout.folder)] if layout.isolated else ["slurmd", "-D", "-N", node]
        self._spawn(node, command)

    def cut(self, node: str) -> None:
        """Pull its cable: everything on it goes on, alone."""
        self._network.pull(node)

    def heal(self, node: str) -> None:
        """Put the cable back; HUP makes slurmd register now, where a minute is usual."""
        self._network.plug(node)
        self.exec(node, "sh", "-c", f"kill -HUP $(cat {self.folder}/slurmd-{node}.pid)", check=False)

    def repair(self) -> None:
        """No jobs, and all nodes idle, whatever was done to them."""
        if "slurmctld" not in self._daemons:
            self.start_controller()
        self.run("scancel", "--quiet", *self.run("squeue", "-h", "-o", "%A").split(), check=False)
        for node in self.layout.names:
            if node in self._daemons:
                self.heal(node)
            else:
                self.power_on(node)
        self.run("scontrol", "update", f"NodeName={','.join(self.layout.names)}", "State=RESUME", check=False)
        self.wait_for(self._all_idle, "all nodes idle", 300)

    def stop_controller(self) -> None:
        """End slurmctld, which saves its state."""
        daemon = self._daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait(300)

    def start_controller(self) -> None:
        """Start slurmctld from its saved state; returns when it answers."""
        hosts_file = self.folder / "hosts"
        own = ["unshare", "--mount", "sh", "-c", f"mount --bind {hosts_file} /etc/hosts && exec slurmctld -D"]
        self._spawn("slurmctld", own if self.layout.isolated else ["slurmctld", "-D"])
        self.wait_for(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld up", 120)

    def _start(self) -> None:
        folder, layout = self.folder, self.layout
        folder.chmod(0o755)
        for name in ("state", *(f"spool-{node}" for node in layout.names)):
            (folder / name).mkdir()
        version = self.run("slurmd", "-V")
        (folder / "slurm.conf").write_text(slurm_conf(layout, version))
        (folder / "cgroup.conf").write_text(cgroup_conf(version))
        (folder / "hosts").write_text(hosts(layout))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        if layout.isolated:
            self._network.remove()
            self._network.make()
        # --force: munged dislikes a parent folder that others can write, such as /tmp.
        files = {"key-file": key, "socket": folder / "munge.sock", "pid-file": folder / "munged.pid"}
        files |= {"log-file": folder / "munged.log", "seed-file": folder / "state" / "munge.seed"}
        self._spawn("munged", ["munged", "-F", "--force", *(f"--{name}={path}" for name, path in files.items())])
        self.wait_for((folder / "munge.sock").exists, "munged up", 30)
        self.start_controller()
        for node in layout.names:
            self.power_on(node)
        self.wait_for(self._all_idle, "all nodes idle", 300)

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t", check=False).split()
        return states == ["idle"] * self.layout.nodes

    def _stop(self) -> None:
        for node in self.layout.names:
            self._end(node)
        for name in list(self._daemons):
            self._end(name)
        for pid in self._processes_with():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.layout.isolated:
            self._network.remove()

    def _processes_with(self, *words: str) -> list[int]:
        """Processes of this cluster that have these in their environment."""
        wanted = {word.encode() for word in (f"SLURM_CONF={self.folder}/slurm.conf", *words)}
        return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if wanted <= _words(path)]

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is not None:
            daemon.kill()
            daemon.wait(300)

    def _init(self, node: str) -> int:
        parent = self._daemons[node].pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])


def _words(path: Path) -> set[bytes]:
    try:
        return set(path.read_bytes().split(b"\0"))
    except OSError:  # another user's, or it has ended
        return set()


def _take_slot() -> tuple[IO[str], int]:
    """A number that no other cluster of this machine has, for as long as the lock is open: names, ports, addresses."""
    for slot in range(SLOTS):
        # Not below TMPDIR: ports and names are those of the machine. Another user's file cannot be opened, as good as taken.
        with suppress(OSError):
            lock = Path(f"/tmp/slurm-test-slot-{slot}.lock").open("w")  # noqa: SIM115
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
            else:
                return lock, slot
    raise AssertionError(f"{SLOTS} test clusters run already")


def main() -> None:
    """Keep a cluster up until Ctrl-C, to try things on it by hand: `python -m tests.support.slurm_cluster [NODES]`."""
    with Cluster(nodes=int(sys.argv[1]) if sys.argv[1:] else 3) as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
