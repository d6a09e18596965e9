"""Schema of a cluster file: the resources a site's jobs request, and how processes start there.

Precedence: these defaults < the YAML file (after the file it `extends:`) < `cluster.KEY=VALUE` on the command line. Rules
between values, and the characters allowed in a batch script, are in `cluster_rules.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from pretrain.config.schema import knob


@dataclass(frozen=True)
class RequeueConfig:
    """When a job requeues itself."""

    enabled: bool = knob(True, "Requeue the job after a time limit, a preemption, a crash or a lost node.")
    max_restarts: int = knob(100, "Maximum restarts of one job.", minimum=0)
    max_without_progress: int = knob(
        3, "Consecutive starts without a new checkpoint after which the job gives up.", minimum=1
    )


@dataclass(frozen=True)
class ContainerConfig:
    """Container image of the training processes. The batch script itself runs outside."""

    kind: str = knob(
        "none", "Container runtime; pyxis is SLURM's plugin for enroot.", choices=("none", "apptainer", "pyxis")
    )
    image: str | None = knob(None, "Image: a file (.sif, .sqsh), or an address that the runtime resolves.")
    mounts: tuple[str, ...] = knob(
        (), "Mounts, `HOST:CONTAINER[:ro]`; the submission folder and the run folder are always mounted."
    )
    arguments: tuple[str, ...] = knob((), "Further options of `apptainer exec`, or of srun with pyxis.")


@dataclass(frozen=True)
class Cluster:
    """Resources that a job requests, and how it starts the training processes."""

    account: str | None = knob(None, "Account to charge; null: SBATCH_ACCOUNT of the environment.")
    account_required: bool = knob(False, "Refuse to submit without an account.")
    partition: str | None = knob(None, "Partition, or several separated by commas.")
    qos: str | None = knob(None, "Quality of service.")
    constraint: str | None = knob(None, "Required node features, e.g. h100&ib.")
    reservation: str | None = knob(None, "Reservation.")
    nodelist: str | None = knob(None, "Nodes that the job must include, e.g. node[01-02].")
    exclude: str | None = knob(None, "Nodes that the job must avoid, e.g. node[07,12-14].")
    exclusive: bool = knob(False, "Share no node with other jobs.")
    nodes: int = knob(1, "Number of nodes; `--nodes N` overrides it.", minimum=1)
    gpus_per_node: int = knob(0, "GPUs per node; 0: train on CPUs.", minimum=0)
    gres: str | None = knob(None, "GPU request of this site, e.g. gpu:h100:8; null: --gpus-per-node.")
    tasks_per_node: int = knob(0, "Processes per node; 0: one per GPU, or one without GPUs.", minimum=0)
    cpus_per_task: int = knob(0, "Cores per process; 0: the site's default.", minimum=0)
    hint: str | None = knob(None, "SLURM's --hint, e.g. nomultithread.")
    mem: str | None = knob(None, 'Memory per node, e.g. "900G"; "0": all of it.')
    time: str = knob("1:00:00", 'Time limit: "HOURS:MINUTES:SECONDS" or "DAYS-HOURS[:MINUTES[:SECONDS]]".')
    signal_lead_s: int = knob(
        180, "Seconds before the time limit at which the job starts to save.", minimum=1, maximum=65535
    )
    job_name: str | None = knob(None, "Job name; null: the name of the run folder.")
    comment: str | None = knob(None, "SLURM's --comment.")
    mail_user: str | None = knob(None, "Recipient of SLURM's mail.")
    mail_type: str | None = knob(None, "Events that send mail, e.g. FAIL,REQUEUE.")
    extra: tuple[str, ...] = knob((), "Further options of sbatch, passed unchanged, e.g. --switches=1.")
    log: str = knob("%x-%j.log", "File name of the job's log in RUN/logs, with sbatch's patterns.")
    requeue: RequeueConfig = field(default_factory=RequeueConfig)
    export: str = knob(
        "all", "Pass the submission environment to the job (all) or not (none).", choices=("all", "none")
    )
    setup: tuple[str, ...] = knob((), "Lines of bash to run first: modules, conda, venv. A failing line ends the job.")
    environment: dict[str, Any] = knob({}, "Environment variables of the processes, e.g. NCCL_DEBUG: WARN.")
    network_interface: str | None = knob(
        None, "Network interface for NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, e.g. ib0."
    )
    python: str | None = knob(None, "Python interpreter; null: the one that submits, or python3 in a container.")
    launcher: str = knob(
        "srun", "srun: one task per process; torchrun: one agent per node.", choices=("srun", "torchrun")
    )
    srun: tuple[str, ...] = knob((), "Further options of srun, e.g. --mpi=none.")
    node_check: bool = knob(False, "Check all nodes before each start: devices, disks, clocks, versions, bandwidth.")
    container: ContainerConfig = field(default_factory=ContainerConfig)
    gpu_memory_gib: float | None = knob(None, "Memory of one GPU in GiB, for the memory plan.", above=0)
    peak_tflops: float | None = knob(None, "Peak TFLOP/s of one GPU in the run's precision, for MFU.", above=0)
    storage_gb_per_s: float = knob(
        1.0, "Write bandwidth of one node to the run folder in GB/s, to estimate the time of a save.", above=0
    )

    @property
    def processes_per_node(self) -> int:
        """Ranks per node."""
        return self.tasks_per_node or self.gpus_per_node or 1
