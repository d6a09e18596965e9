"""Batch scripts from the templates and a cluster file: pure functions from values to text.

Templates are bash with `@@name` placeholders (`$` belongs to bash). User values are quoted: for sbatch in `#SBATCH` lines,
for bash elsewhere.
"""

import shlex
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.slurm.cluster import Cluster
from launch.slurm.cluster_rules import quote_directive

TEMPLATES = Path(__file__).parent / "templates"
# Evaluated in each task, the only place where SLURM_PROCID and SLURM_LOCALID are set.
TASK = (
    "export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE={local_size}; "
    'exec "$@"'
)
# is_host explicitly: torch guesses the rendezvous host from host names, wrongly on a node with several names.
AGENT = (
    'host=0; [ "$SLURM_NODEID" != 0 ] || host=1; exec {python} -m launch.agent {log} --nnodes="$SLURM_NNODES" '
    "--nproc-per-node={local_size} --rdzv-backend=c10d --rdzv-endpoint=$MASTER_ADDR:$MASTER_PORT "
    '--rdzv-id="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" --rdzv-conf="is_host=$host" --max-restarts=0 '
    '--shutdown-timeout=60 --module -- "$@"'
)


class BatchTemplate(string.Template):
    """Placeholders `@@name`: bash uses `$`, and sbatch `%`."""

    delimiter = "@@"


@dataclass(frozen=True)
class TrainJob:
    """A training job. Paths are absolute."""

    run: Path
    config: Path
    workdir: Path
    name: str


@dataclass(frozen=True)
class EncodeJob:
    """One tokenization job: `plan`, the array of `tasks`, or `merge`. `arguments`: of `tokenizer encode`."""

    step: str
    arguments: Sequence[str]
    tasks: int
    records: Path
    workdir: Path
    name: str


def render_train(job: TrainJob, cluster: Cluster) -> str:
    """Batch script of a training job."""
    per_node = cluster.processes_per_node
    agents = cluster.launcher == "torchrun"
    python = interpreter(cluster)
    wrapper = (AGENT if agents else TASK).format(
        local_size=per_node,
        python=shlex.quote(python),
        log=shlex.quote(f"{job.run}/logs/torchrun") + '"-$SLURM_NODEID.log"',
    )
    train = ["pretrain.train", str(job.config)]
    check = [
        python,
        "-m",
        "pretrain.node_check",
        str(job.config),
        *(["--exclude-bad"] if cluster.requeue.enabled else []),
    ]
    container, container_options = container_command(cluster, (job.workdir, job.run))
    values = {
        "job_name": quote_directive(cluster.job_name or job.name),
        "workdir": quote_directive(str(job.workdir)),
        "log": quote_directive(f"{job.run}/logs/{cluster.log}"),
        "nodes": cluster.nodes,
        "ntasks_per_node": 1 if agents else per_node,
        "time": cluster.time,
        "signal": f"B:USR1@{cluster.signal_lead_s}",
        "requeue": "--requeue" if cluster.requeue.enabled else "--no-requeue",
        "directives": "\n".join(f"#SBATCH {line}" for line in directives(cluster)),
        "setup": "\n".join(cluster.setup),
        "run": shlex.quote(str(job.run)),
        "may_requeue": "yes" if cluster.requeue.enabled else "no",
        "max_restarts": cluster.requeue.max_restarts,
        "max_without_progress": cluster.requeue.max_without_progress,
        "train": words(train if agents else [python, "-m", *train]),
        "node_check": words(check if cluster.node_check else []),
        "container": words(container),
        "exclude": shlex.quote(cluster.exclude or ""),
        "srun_options": words([*cluster.srun, *container_options]),
        "environment": "\n".join(exports(cluster)),
        "wrapper": shlex.join(["sh", "-c", wrapper, "task"]),
    }
    return _fill("train.sbatch", values)


def render_encode(job: EncodeJob, cluster: Cluster) -> str:
    """Batch script of one tokenization step: one node without GPUs."""
    alone = replace(cluster, nodes=1, tasks_per_node=1, gpus_per_node=0, gres=None, exclusive=False, launcher="srun")
    container, container_options = container_command(alone, (job.workdir, job.records))
    limits = [f"--array=0-{job.tasks - 1}"] if job.step == "tasks" else []
    values = {
        "job_name": quote_directive(f"{job.name}-{job.step}"),
        "workdir": quote_directive(str(job.workdir)),
        "log": quote_directive(f"{job.records}/{job.step}-" + ("%A_%a.log" if job.step == "tasks" else "%j.log")),
        "time": alone.time,
        "signal": f"B:USR1@{alone.signal_lead_s}",
        "requeue": "--requeue" if alone.requeue.enabled else "--no-requeue",
        "directives": "\n".join(f"#SBATCH {line}" for line in (*limits, *directives(alone))),
        "setup": "\n".join(alone.setup),
        "records": shlex.quote(str(job.records)),
        "may_requeue": "yes" if alone.requeue.enabled else "no",
        "max_restarts": alone.requeue.max_restarts,
        "max_failures": alone.requeue.max_without_progress,
        "tasks": job.tasks,
        "command": words([interpreter(alone), "-m", "pretrain.cli", "tokenizer", "encode", *job.arguments]),
        "container": words(container),
        "srun_options": words([*alone.srun, *container_options]),
        "environment": "\n".join(exports(alone)),
    }
    return _fill("encode.sbatch", values)


def directives(cluster: Cluster) -> Iterator[str]:
    """sbatch options of the cluster file's keys, in their order."""
    keys = ("account", "partition", "qos", "constraint", "reservation", "nodelist", "exclude", "hint", "mem", "comment")
    for key in (*keys, "mail_user", "mail_type"):
        value = getattr(cluster, key)
        if value is not None:
            yield f"--{key.replace('_', '-')}={quote_directive(value)}"
    if cluster.exclusive:
        yield "--exclusive"
    # Per node, not per task: with its own GPU only, a task could not use peer-to-peer copies.
    if cluster.gres is not None:
        yield f"--gres={quote_directive(cluster.gres)}"
    elif cluster.gpus_per_node:
        yield f"--gpus-per-node={cluster.gpus_per_node}"
    if cluster.cpus_per_task:
        agents = cluster.launcher == "torchrun"
        yield f"--cpus-per-task={cluster.cpus_per_task * (cluster.processes_per_node if agents else 1)}"
    if cluster.export == "none":
        yield "--export=NONE"
    yield from cluster.extra


def exports(cluster: Cluster) -> Iterator[str]:
    """`export` lines of the processes' environment variables."""
    interface = cluster.network_interface
    wanted = {} if interface is None else {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    for name, value in {**wanted, **cluster.environment}.items():
        yield f"export {name}={shlex.quote(str(value))}"


def container_command(cluster: Cluster, seen: Sequence[Path]) -> tuple[list[str], list[str]]:
    """(command prefix of each task, srun options): apptainer is a command, pyxis an srun plugin.

    `seen`: folders that are always mounted; processes start in the first.
    """
    container = cluster.container
    folders = dict.fromkeys(map(str, seen))
    if container.kind == "none" or container.image is None:
        return [], []
    if container.kind == "apptainer":
        binds = [f"--bind={mount}" for mount in (*folders, *container.mounts)]
        devices = ["--nv"] if cluster.gpus_per_node else []
        command = ["apptainer", "exec", *devices, f"--pwd={seen[0]}", *binds, *container.arguments, container.image]
        return command, []
    mounts = ",".join((*(f"{folder}:{folder}" for folder in folders), *container.mounts))
    options = [f"--container-image={container.image}", f"--container-mounts={mounts}"]
    return [], [*options, f"--container-workdir={seen[0]}", *container.arguments]


def interpreter(cluster: Cluster) -> str:
    """Python interpreter of the processes."""
    if cluster.python is not None:
        return cluster.python
    return sys.executable if cluster.container.kind == "none" else "python3"


def words(texts: Sequence[str]) -> str:
    """Elements of a bash array. Quotes elements with commas: shellcheck (SC2054) takes them for separators."""
    return " ".join(shlex.quote(text) if "," not in text or "'" in text else f"'{text}'" for text in texts)


def _fill(template: str, values: Mapping[str, object]) -> str:
    """Fill a template; every placeholder must have a value, and every value a placeholder."""
    text = BatchTemplate((TEMPLATES / template).read_text())
    unused = values.keys() - set(text.get_identifiers())
    assert not unused, f"{template} has no place for {sorted(unused)}"
    return text.substitute(values)
