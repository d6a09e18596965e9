"""slurm.conf of the test cluster: quick where a real one is patient, and otherwise as production clusters are set up."""

import os
import pwd
import socket
from pathlib import Path
from typing import NamedTuple

FREEZER = Path("/sys/fs/cgroup/freezer/cgroup.procs")


class Layout(NamedTuple):
    """What distinguishes one test cluster from another on the same machine."""

    folder: Path
    nodes: int
    cpus: int  # that a node claims; the machine's own number does not matter
    isolated: bool  # each node in namespaces of its own, which needs root; else they share the host and differ by port
    slot: int

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    @property
    def network(self) -> str:
        return f"10.213.{self.slot}"

    @property
    def prefix(self) -> str:
        return f"pt{self.slot}"

    @property
    def port(self) -> int:
        return 17_000 + 20 * self.slot

    def address(self, node: str) -> str:
        return f"{self.network}.{node[1:]}" if self.isolated else "127.0.0.1"

    @property
    def controller(self) -> str:
        return f"{self.network}.254" if self.isolated else "127.0.0.1"


def slurm_conf(layout: Layout, version: str) -> str:
    """The whole file. `version` is what `slurmd -V` prints."""
    user, folder = pwd.getpwuid(os.getuid()).pw_name, layout.folder
    # As on production clusters: a signal reaches what slurmstepd started and not what that started, and orphans die with
    # the job. linuxproc needs no privilege, but signals every descendant.
    tracking = "cgroup" if layout.isolated and os.access(FREEZER, os.W_OK) else "linuxproc"
    lines = f"""
        ClusterName=test
        SlurmctldHost={socket.gethostname().split(".")[0]}({layout.controller})
        SlurmctldPort={layout.port}
        SlurmUser={user}
        SlurmdUser={user}
        AuthType=auth/munge
        CredType=cred/munge
        # cred_expire is also how long a requeued job waits before it may start again: 120 s unless set
        AuthInfo=socket={folder}/munge.sock,cred_expire=6
        StateSaveLocation={folder}/state
        SlurmdSpoolDir={folder}/spool-%n
        SlurmctldPidFile={folder}/slurmctld.pid
        SlurmdPidFile={folder}/slurmd-%n.pid
        SlurmctldLogFile={folder}/slurmctld.log
        SlurmdLogFile={folder}/slurmd-%n.log
        ProctrackType=proctrack/{tracking}
        TaskPlugin=task/none
        JobAcctGatherType=jobacct_gather/none
        MpiDefault=none
        SlurmdParameters=config_overrides
        SelectType=select/cons_tres
        SelectTypeParameters=CR_Core_Memory
        DefMemPerCPU=100
        SchedulerType=sched/backfill
        SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000
        # seconds between TERM and KILL
        KillWait=20
        CompleteWait=0
        MessageTimeout=10
        SlurmdTimeout=15
        SlurmctldTimeout=15
        InactiveLimit=0
        MinJobAge=3600
        BatchStartTimeout=30
        JobRequeue=1
        ReturnToService=2
        # a job in `low` is requeued for one in `high`, with 30 s to save
        PreemptType=preempt/partition_prio
        PreemptMode=REQUEUE
    """
    conf = [line.strip() for line in lines.strip().splitlines()]
    for number, node in enumerate(layout.names, 1):
        place = "Port=16818" if layout.isolated else f"NodeHostname=localhost Port={layout.port + number}"
        place = f"NodeAddr={layout.address(node)} {place}"
        conf.append(f"NodeName={node} {place} CPUs={layout.cpus} RealMemory=8000 State=UNKNOWN")
    conf += [
        "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF",
        "PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30 PreemptMode=REQUEUE",
        "PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=20 PreemptMode=OFF",
    ]
    return "\n".join(conf) + "\n"


def cgroup_conf(version: str) -> str:
    """slurmd up to 23.02 looks for a cgroup file system although nothing needs one, and gives up without it."""
    major, minor = (int(part) for part in version.split()[-1].split(".")[:2])
    return "CgroupPlugin=cgroup/v1\n" if (major, minor) < (23, 11) else "CgroupPlugin=disabled\n"


def hosts(layout: Layout) -> str:
    """/etc/hosts of each node."""
    lines = ["127.0.0.1 localhost", "::1 localhost", f"{layout.controller} {socket.gethostname()}"]
    for node in layout.names:
        # torch asks for the name of the mapped address too, and waits for a name server where nobody knows it.
        lines += [f"{layout.address(node)} {node}", f"::ffff:{layout.address(node)} {node}.mapped"]
    return "\n".join(lines) + "\n"
