"""Plan of a job as text: batch, model, checkpoint size, memory per process at each ZeRO stage."""

from collections.abc import Iterator

from launch.slurm.checks import STATE_BYTES, save_seconds
from launch.slurm.cluster import Cluster
from pretrain.config.schema import Config
from pretrain.plan.counts import count_parameters, flops_per_token, plan_batch
from pretrain.plan.memory import MemoryPlan, offload_devices, plan_memory, with_stage

GIB = 2**30
COLUMNS = ("parameters", "gradients", "optimizer", "gathered", "buckets", "activations", "head", "total", "host")


def plan_lines(config: Config, cluster: Cluster) -> list[str]:
    """The complete plan, as lines of text."""
    world = cluster.nodes * cluster.processes_per_node
    return [*_batch(config, cluster, world), "", *_memory(config, cluster, world)]


def _batch(config: Config, cluster: Cluster, world: int) -> Iterator[str]:
    batch, count = config.batch, count_parameters(config.model)
    plan = plan_batch(config, world)
    tokens = plan.tokens_per_step * config.schedule.total_steps
    flops = flops_per_token(config.model, config.data.seq_len)
    yield f"processes    {cluster.nodes} nodes × {cluster.processes_per_node} = {world}"
    divides = plan.grad_accum_steps * batch.micro_batch_size * world == batch.global_batch_size
    share = f"{plan.sequences_per_rank} per process, {plan.grad_accum_steps} × {batch.micro_batch_size}"
    yield (
        f"batch        {batch.global_batch_size} sequences × {config.data.seq_len} = {plan.tokens_per_step:,} tokens per step: "
        + (share if divides else "does not divide among the processes")
    )
    yield f"model        {count:,} parameters, {flops / 1e9:,.2f} GFLOP per token"
    yield f"run          {config.schedule.total_steps:,} steps, {tokens:,} tokens, {flops * tokens:.3g} FLOP"
    if cluster.peak_tflops:
        days = flops * tokens / (world * cluster.peak_tflops * 1e12 * 0.4) / 86_400
        yield f"             {days:.1f} days at 40 % MFU"
    yield (
        f"checkpoint   {STATE_BYTES * count / 1e9:,.1f} GB, about {save_seconds(config, cluster):.0f} s at "
        f"{cluster.storage_gb_per_s:g} GB/s per node"
    )


def _memory(config: Config, cluster: Cluster, world: int) -> Iterator[str]:
    """A table; an arrow marks the run's own options."""
    limit = cluster.gpu_memory_gib
    yield f"memory per {'GPU' if cluster.gpus_per_node else 'process'} in GiB; per node: {cluster.processes_per_node} × host"
    yield f"  {'':<26}" + "".join(f"{name:>12}" for name in COLUMNS)
    own = config.engine.zero_stage, *offload_devices(config)
    rows = [(stage, "none", "none") for stage in _stages(config)] + [(3, "cpu", "none"), (3, "cpu", "cpu")]
    for stage, optimizer, parameters in rows if own in rows else [own, *rows]:
        same = (stage, optimizer, parameters) == own
        options = {"optimizer": optimizer != "none", "parameters": parameters != "none"}
        plan = plan_memory(config if same else with_stage(config, stage, **options), world)
        yield ("→ " if same else "  ") + _row(_name(stage, optimizer, parameters), plan, limit)
    yield "  not counted: CUDA context, NCCL, fragmentation; together some GiB"


def _stages(config: Config) -> range:
    return range(0 if config.engine.precision == "fp32" else 1, 4)


def _row(name: str, plan: MemoryPlan, limit: float | None) -> str:
    too_much = "  does not fit" if limit is not None and plan.total > limit * GIB else ""
    return f"{name:<26}" + "".join(f"{getattr(plan, column) / GIB:>12.2f}" for column in COLUMNS) + too_much


def _name(stage: int, optimizer: str, parameters: str) -> str:
    parts = [name for name, device in (("optimizer", optimizer), ("all", parameters)) if device != "none"]
    return f"ZeRO-{stage}" + (f", {parts[-1]} on host" if parts else "")
