"""`pretrain launch`: start a training on this machine, on several, or on a SLURM cluster; `stop` and `status` of one."""

import sys
from pathlib import Path

import click

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
CONFIG = click.argument("config", type=click.Path(path_type=Path))
CLUSTER = click.option(
    "--cluster", required=True, metavar="FILE|NAME", help="A cluster file, or its name in configs/cluster."
)
NODES = click.option(
    "--nodes", type=click.IntRange(1), metavar="N", help="Number of nodes.  [default: from the cluster file]"
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would be run, and exit.")


@click.group()
def launch() -> None:
    """Start a multi-process training."""


@launch.command()
@CONFIG
@click.option("--nproc", type=click.IntRange(1), required=True, metavar="N", help="Number of processes, one per GPU.")
@click.option(
    "--max-restarts",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="K",
    help="Restarts after a crash or hang, while each start saves a new checkpoint.",
)
@OVERRIDES
def local(config: Path, nproc: int, max_restarts: int, overrides: tuple[str, ...]) -> None:
    """Train with N processes on this machine. Ctrl-C saves and ends; the same command resumes."""
    from launch.slurm.submit import refuse_beside_job
    from launch.torchrun import launch_with_restarts
    from pretrain.config import load_config
    from pretrain.run_folder import RunFolder
    from pretrain.training.startup.preflight import prepare

    run_config = load_config(config, overrides).config
    refuse_beside_job(Path(run_config.run.dir))
    click.echo("checking data and checkpoints …")
    prepare(run_config, nproc)
    click.echo(f"starting {nproc} process{'es' if nproc > 1 else ''} …")
    folder = RunFolder(Path(run_config.run.dir))
    sys.exit(launch_with_restarts(str(config), overrides, nproc, folder, max_restarts))


@launch.command()
@CONFIG
@click.option("--hostfile", type=click.Path(path_type=Path), required=True, help="One line per machine: NAME slots=8.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=29500, show_default=True, help="Port on the first machine."
)
@click.option(
    "--ssh", default=None, metavar="COMMAND", help="Command to reach a machine.  [default: ssh -tt -o BatchMode=yes]"
)
@DRY_RUN
@OVERRIDES
def hosts(config: Path, hostfile: Path, port: int, ssh: str | None, dry_run: bool, overrides: tuple[str, ...]) -> None:
    """Train on several machines over ssh; all must see the same paths."""
    import os
    import shlex

    from launch.hosts import SSH, host_commands, launch_hosts, read_hostfile
    from pretrain.config import load_config
    from pretrain.run_folder import RunFolder

    machines = read_hostfile(hostfile)
    run_config = load_config(config, overrides).config
    run = RunFolder(Path(run_config.run.dir))
    commands = host_commands(
        str(config), overrides, machines, port=port, environment=os.environ, folder=Path.cwd(), logs=run.logs
    )
    reach = SSH if ssh is None else tuple(shlex.split(ssh))
    if dry_run:
        for host, command in zip(machines, commands, strict=True):
            click.echo(shlex.join([*reach, host.name, command]))
        return
    from launch.slurm.submit import refuse_beside_job
    from pretrain.training.startup.preflight import prepare

    refuse_beside_job(Path(run_config.run.dir))
    click.echo("checking data and checkpoints …")
    prepare(run_config, sum(host.slots for host in machines))
    click.echo(f"starting processes on {len(machines)} machines …")
    sys.exit(launch_hosts(commands, machines, run, reach))


@launch.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--slots", type=click.IntRange(1), required=True, metavar="N", help="Processes per machine.")
def hostfile(output: Path, slots: int) -> None:
    """Write a hostfile of this SLURM allocation, for `launch hosts` and deepspeed."""
    from launch.hosts import Host, format_hostfile
    from launch.slurm.commands import allocated_nodes

    nodes = allocated_nodes()
    output.write_text(format_hostfile([Host(name, slots) for name in nodes]))
    click.echo(f"{output}: {len(nodes)} × {slots}")


@launch.command("slurm")
@CONFIG
@CLUSTER
@NODES
@DRY_RUN
@OVERRIDES
def slurm_command(config: Path, cluster: str, nodes: int | None, dry_run: bool, overrides: tuple[str, ...]) -> None:
    """Submit a training to SLURM. The job requeues itself until the run is done.

    KEY=VALUE overrides the run's configuration, cluster.KEY=VALUE the cluster file. --dry-run prints the script to stdout
    and the batch and memory plan to stderr; it needs neither SLURM nor torch.
    """
    from launch.slurm.submit import problems_of, read, script_of, submit

    submission = read(config, overrides, cluster, nodes)
    if dry_run:
        from launch.job_plan import plan_lines

        click.echo(script_of(submission, submission.folder.next_script().with_suffix(".yaml")))
        click.echo("\n".join(plan_lines(submission.config, submission.cluster)), err=True)
        problems = problems_of(submission)
        if problems:
            click.echo("problems to fix before submission:", err=True)
            click.echo("\n".join(f"  - {problem}" for problem in problems), err=True)
        return

    def prepare() -> None:
        try:
            from pretrain.training.startup.preflight import prepare as check_start
        except ModuleNotFoundError as error:  # login node without numpy; each process checks again at start-up
            click.echo(f"data and checkpoints were not checked: {error}", err=True)
            return
        check_start(submission.config, submission.world_size)

    record = submit(submission, prepare)
    run = submission.config.run.dir
    rows = {
        "job": f"{record.job_id}, {submission.cluster.nodes} × {submission.cluster.processes_per_node} processes",
        "script": record.script,
        "log": record.log,
        "look": f"pretrain status {run}",
        "stop": f"pretrain stop {run}",
    }
    click.echo("\n".join(f"{name:<6}  {value}" for name, value in rows.items()))


@launch.command("slurm-encode")
@click.argument("arguments", nargs=-1, required=True, metavar="-- ARGUMENTS OF tokenizer encode")
@CLUSTER
@click.option("--tasks", type=click.IntRange(1), required=True, metavar="K", help="Size of the job array.")
@click.option(
    "--records", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder for scripts and logs."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key of the cluster file.")
@DRY_RUN
def slurm_encode(
    arguments: tuple[str, ...], cluster: str, tasks: int, records: Path, changes: tuple[str, ...], dry_run: bool
) -> None:
    """Tokenize a corpus on SLURM as dependent jobs: plan, array of K tasks, merge."""
    from launch.slurm.cluster_file import load_cluster
    from launch.slurm.encode_jobs import encode_scripts, submit_scripts

    scripts = encode_scripts(arguments, load_cluster(cluster, changes), tasks=tasks, records=records)
    if dry_run:
        click.echo("\n".join(script.text for script in scripts))
        return
    for step, job in submit_scripts(scripts).items():
        click.echo(f"{step:<6}  job {job}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--now", is_flag=True, help="Cancel its SLURM job without a save; steps after the last checkpoint are lost."
)
def stop(run: Path, now: bool) -> None:
    """Save and end RUN. Its job does not requeue."""
    from launch.stop import stop_run

    click.echo(stop_run(run, now=now))


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(path_type=Path))
@click.option("--watch", "live", is_flag=True, help="Refresh every few seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per run.")
def status(runs: tuple[Path, ...], live: bool, as_json: bool) -> None:
    """Show progress and speed of RUN, or why it is not running. Default: all in runs/."""
    import json

    from launch.status import find_runs, read_status

    runs = runs or tuple(find_runs(Path("runs")))
    if as_json:
        for run in runs:
            click.echo(json.dumps(read_status(run).to_json()))
        return
    from rich.console import Console

    from pretrain.cli.views.run_status import render, watch

    console = Console(highlight=False, soft_wrap=True)
    if live:
        watch(runs, console)
    else:
        console.print(render([read_status(run) for run in runs]))
