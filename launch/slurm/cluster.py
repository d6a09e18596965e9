"""A cluster file: what a site wants to be asked for, and how to start processes there. Every knob once, as in a run's config.

Precedence: these defaults < the YAML file (after what it `extends:`) < `cluster.KEY=VALUE` on the command line. Rules
between values, and what may stand in a batch script, are in `cluster_rules.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from pretrain.config.schema import knob


@dataclass(frozen=True)
class RequeueConfig:
    """When a job asks to be run again."""

    enabled: bool = knob(True, "Requeue the job after a time limit, a preemption, a crash or a lost node.")
    max_restarts: int = knob(100, "Starts of one job beyond the first.", minimum=0)
    max_without_progress: int = knob(3, "Starts in a row that may end without a new checkpoint.", minimum=1)


@dataclass(frozen=True)
class ContainerConfig:
    """An image that the processes of the training run in. The batch script itself runs outside."""

    kind: str = knob("none", "Runtime; pyxis is SLURM's plugin for enroot.", choices=("none", "apptainer", "pyxis"))
    image: str | None = knob(None, "A file (.sif, .sqsh), or an address that the runtime knows.")
    mounts: tuple[str, ...] = knob(
        (), "`HOST:CONTAINER[:ro]`; the folder of submission and the run are always mounted."
    )
    arguments: tuple[str, ...] = knob((), "Further options of `apptainer exec`, or of srun for pyxis.")


@dataclass(frozen=True)
class Cluster:
    """What a job asks for, and what it does before and around the training."""

    account: str | None = knob(None, "Who pays; where null, SBATCH_ACCOUNT of the environment is used.")
    account_required: bool = knob(False, "Refuse to submit without an account.")
    partition: str | None = knob(None, "Partition, or several separated by commas.")
    qos: str | None = knob(None, "Quality of service.")
    constraint: str | None = knob(None, "Features of nodes, e.g. h100&ib.")
    reservation: str | None = knob(None, "Reservation.")
    nodelist: str | None = knob(None, "Nodes that must be among those of the job.")
    exclude: str | None = knob(None, "Nodes that must not, e.g. node[07,12-14].")
    exclusive: bool = knob(False, "Share no node with other jobs.")
    nodes: int = knob(1, "Nodes; `--nodes N` comes before it.", minimum=1)
    gpus_per_node: int = knob(0, "GPUs of each node; 0 trains on CPUs.", minimum=0)
    gres: str | None = knob(None, "How this site asks for them, e.g. gpu:h100:8; null uses --gpus-per-node.")
    tasks_per_node: int = knob(0, "Processes of each node; 0 is one a GPU, or one without GPUs.", minimum=0)
    cpus_per_task: int = knob(0, "Cores of each process; 0 leaves it to the site.", minimum=0)
    hint: str | None = knob(None, "SLURM's --hint, e.g. nomultithread.")
    mem: str | None = knob(None, 'Memory of each node, e.g. "900G"; "0" is all of it.')
    time: str = knob("1:00:00", 'Time limit: "HOURS:MINUTES:SECONDS" or "DAYS-HOURS[:MINUTES[:SECONDS]]".')
    signal_lead_s: int = knob(
        180, "Seconds before the limit at which the job begins to save.", minimum=1, maximum=65535
    )
    job_name: str | None = knob(None, "Name in the queue; null is the name of the run's folder.")
    comment: str | None = knob(None, "SLURM's --comment.")
    mail_user: str | None = knob(None, "Address for mail.")
    mail_type: str | None = knob(None, "Occasions for mail, e.g. FAIL,REQUEUE.")
    extra: tuple[str, ...] = knob((), "Further options of sbatch as they are, e.g. --switches=1.")
    log: str = knob("%x-%j.log", "Name of the job's log in RUN/logs; sbatch's patterns.")
    requeue: RequeueConfig = field(default_factory=RequeueConfig)
    export: str = knob("all", "Whether the environment of submission reaches the job.", choices=("all", "none"))
    setup: tuple[str, ...] = knob(
        (), "Lines of bash before anything else: modules, conda, venv. One that fails ends the job."
    )
    environment: dict[str, Any] = knob({}, "Variables of the processes, e.g. NCCL_DEBUG: WARN.")
    network_interface: str | None = knob(None, "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, e.g. ib0.")
    python: str | None = knob(None, "Interpreter; null is the one that submits, or python3 in a container.")
    launcher: str = knob(
        "srun", "srun: a task for each process. torchrun: one agent a node.", choices=("srun", "torchrun")
    )
    srun: tuple[str, ...] = knob((), "Further options of srun, e.g. --mpi=none.")
    node_check: bool = knob(False, "Look at every node before each start: devices, disks, clocks, versions, bandwidth.")
    container: ContainerConfig = field(default_factory=ContainerConfig)
    gpu_memory_gib: float | None = knob(None, "Memory of one GPU, for the memory plan.", above=0)
    peak_tflops: float | None = knob(None, "Peak of one GPU in the run's precision, for MFU.", above=0)
    storage_gb_per_s: float = knob(1.0, "What one node writes to the run's folder, for how long a save takes.", above=0)

    @property
    def processes_per_node(self) -> int:
        """Ranks of each node."""
        return self.tasks_per_node or self.gpus_per_node or 1
