"""Checks before submission, on a login node: everything that would make SLURM or the job fail, in one error."""

import difflib
from collections.abc import Iterator
from pathlib import Path

from launch.slurm.cluster import Cluster
from launch.slurm.cluster_rules import parse_time, unsafe_path
from pretrain.config.check import check_world
from pretrain.config.schema import Config
from pretrain.errors import ConfigError
from pretrain.plan.counts import count_parameters

STATE_BYTES = 12  # per parameter of a checkpoint: fp32 master weight and two Adam moments


def save_seconds(config: Config, cluster: Cluster) -> float:
    """Estimated seconds of a save at `storage_gb_per_s`; each node writes its share."""
    return STATE_BYTES * count_parameters(config.model) / (cluster.nodes * cluster.storage_gb_per_s * 1e9)


def find_problems(config: Config, cluster: Cluster, run: Path, partitions: set[str] | None) -> list[str]:
    """All reasons not to submit. `partitions`: those of the cluster, None if unknown."""
    parts = (_batch(config, cluster), _time(config, cluster), _site(cluster, partitions), _paths(config, run))
    return [problem for part in parts for problem in part]


def _batch(config: Config, cluster: Cluster) -> Iterator[str]:
    try:
        check_world(config, cluster.nodes * cluster.processes_per_node)
    except ConfigError as error:
        yield from error.problems


def _time(config: Config, cluster: Cluster) -> Iterator[str]:
    seconds, save = parse_time(cluster.time), save_seconds(config, cluster)
    if save > cluster.signal_lead_s:
        yield (
            f"cluster.signal_lead_s={cluster.signal_lead_s} is too short for a save, which takes about {save:.0f} s at "
            f"cluster.storage_gb_per_s={cluster.storage_gb_per_s:g} per node\n"
            f"    hint: cluster.signal_lead_s={2 * save:.0f}"
        )
    if seconds is not None and seconds < 2 * save + cluster.signal_lead_s:
        yield (
            f"cluster.time={cluster.time} leaves no time to train: loading and saving take about {save:.0f} s each, and the "
            f"job stops {cluster.signal_lead_s} s before the limit\n"
            f"    hint: a longer cluster.time"
        )
    limit = config.run.time_limit_minutes
    if seconds is not None and limit is not None and 60 * limit > seconds:
        yield f"run.time_limit_minutes={limit:g} exceeds cluster.time={cluster.time}\n    hint: run.time_limit_minutes=null"


def _site(cluster: Cluster, partitions: set[str] | None) -> Iterator[str]:
    if cluster.account_required and cluster.account is None:
        yield "cluster.account is not set, and this cluster requires one\n    hint: cluster.account=NAME, or SBATCH_ACCOUNT"
    if partitions is None or cluster.partition is None:
        return
    for name in cluster.partition.split(","):
        if name not in partitions:
            near = difflib.get_close_matches(name, partitions, n=1)
            known = f"did you mean {near[0]}?" if near else f"available: {', '.join(sorted(partitions))}"
            yield f"cluster.partition={name} is not a partition of this cluster\n    hint: {known}"


def _paths(config: Config, run: Path) -> Iterator[str]:
    for name, path in {"run.dir=": run, "submission folder ": Path.cwd()}.items():
        if unsafe_path(str(path)):
            yield f"{name}{str(path)!r} contains %, quotes, backslashes or newlines, which sbatch would misread"
    if not config.data.train:
        yield "data.train has no source\n    hint: data.train.web.path=DIR"
    for part in ("train", "valid"):
        for name, source in getattr(config.data, part).items():
            if "://" not in source.path and not (Path(source.path) / "manifest.json").is_file():
                yield (
                    f"data.{part}.{name}.path={source.path} has no manifest.json\n"
                    f"    hint: a folder written by `pretrain tokenizer encode`, visible from here and from the nodes"
                )
    tokenizer = config.data.tokenizer
    if tokenizer is not None and not Path(tokenizer).is_file():
        yield f"data.tokenizer={tokenizer} is not a file\n    hint: the tokenizer that encoded the shards"
