"""Partitions of this rank in DeepSpeed. Only this module knows DeepSpeed's private layout (0.19.8; tests fail if it changes).

At every ZeRO stage the optimizer works on flat fp32 tensors ("partitions") that hold ranges of parameters ("fragments"):

    stage 0      one partition per parameter: the parameter itself, replicated on all ranks
    stage 1, 2   one per parameter group: the rank-th share of the flattened group, in DeepSpeed's own order
    stage 3      one per sub-group: the rank-th slice of ceil(numel / world_size) elements of each parameter
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.distributed.engine import Engine
from pretrain.optim.optimizer_state import STEP, check_state

LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Fragment(NamedTuple):
    """Elements [start, start + numel) of a flattened parameter, at `offset` of a partition."""

    name: str
    start: int
    offset: int
    numel: int


class Partition(NamedTuple):
    """A flat fp32 master, its optimizer state, and its fragments.

    `shape` is that of the optimizer's parameter and so of its state: CUDA's fused AdamW requires equal shapes.
    """

    master: Tensor
    state: dict[str, Any]
    fragments: list[Fragment]
    shape: torch.Size

    def flat(self, kind: str) -> Tensor:
        """The flat tensor of a kind: `fp32` is the master, others are names of the optimizer's state."""
        if kind == "fp32":
            return self.master
        # There is no state while fp16 has skipped every step so far.
        return self.state[kind].view(-1) if kind in self.state else torch.zeros_like(self.master)


def partitions(engine: Engine) -> list[Partition]:
    """This rank's partitions, in a fixed order."""
    found = {0: _replicated_parameters, 1: _group_shares, 2: _group_shares, 3: _parameter_slices}[engine.stage]
    return list(found(engine))


def saves_partitions(engine: Engine) -> bool:
    """Whether this rank saves its partitions: at stage 0 they are replicated, and rank 0 saves them."""
    return engine.stage > 0 or dist.get_rank() == 0


def all_kinds(engine: Engine) -> tuple[str, ...]:
    """Kinds of a full checkpoint: the masters and the state that the optimizer declares."""
    return ("fp32", *engine.state_names)


def check_optimizer_state(engine: Engine) -> None:
    """Raise UserError if the optimizer keeps other state than it declares, which a checkpoint would lose."""
    for part in partitions(engine):
        check_state(engine.state_names, part.state, part.master.numel())


def init_optimizer_state(partition: Partition, names: Sequence[str], optimizer_steps: int) -> None:
    """Create the state that the optimizer would create at its first step, to be filled from a checkpoint."""
    partition.state[STEP] = torch.tensor(float(optimizer_steps), device=partition.master.device)
    for name in names:
        partition.state[name] = torch.zeros_like(partition.master).view(partition.shape)


def optimizer_steps(engine: Engine) -> int:
    """Updates by the optimizer; fewer than the run's steps if fp16 overflowed."""
    return next((int(part.state[STEP]) for part in partitions(engine) if STEP in part.state), 0)


def copy_masters_to_model(engine: Engine) -> None:
    """Update the model's weights from masters that were just loaded."""
    optimizer = engine.optimizer
    if engine.stage in (1, 2):
        optimizer.update_lp_params()
        # Links to the moments are made once: those loaded are new tensors.
        optimizer._hp_optimizer_states_linked = False
    elif engine.stage == 3:
        optimizer.checkpoint_event_prologue()  # releases gathered parameters
        for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[number].data.copy_(flat.data)
            slices = optimizer.fp16_partitioned_groups[number]
            values = optimizer.unflatten(optimizer.fp16_partitioned_groups_flat[number], slices)
            for mine, value in zip(slices, values, strict=True):
                mine.data = value.data
        optimizer.checkpoint_event_epilogue()


def loss_scale_state(engine: Engine) -> dict[str, float]:
    """State of DeepSpeed's dynamic loss scaler; empty without fp16."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if engine.config.engine.precision != "fp16" or scaler is None:
        return {}
    return {name: vars(scaler)[name] for name in LOSS_SCALE if name in vars(scaler)}


def load_loss_scale_state(engine: Engine, state: dict[str, float]) -> None:
    """Restore it if this run uses fp16."""
    if engine.config.engine.precision == "fp16":
        for name in LOSS_SCALE:
            if name in state:
                setattr(engine.optimizer.loss_scaler, name, state[name])


def _replicated_parameters(engine: Engine) -> Iterator[Partition]:
    for name, parameter in engine.model.named_parameters():
        state = engine.optimizer.state[parameter]
        fragment = Fragment(name, 0, 0, parameter.numel())
        yield Partition(parameter.data.view(-1), state, [fragment], parameter.shape)


def _group_shares(engine: Engine) -> Iterator[Partition]:
    # From the offsets in the flattened group: DeepSpeed's `_hp_mapping` is wrong with `round_robin_gradients`.
    optimizer = engine.optimizer
    for number, flat in enumerate(optimizer.single_partition_of_fp32_groups):
        size, fragments = optimizer.partition_size[number], []
        begin = dist.get_rank(group=optimizer.real_dp_process_group[number]) * size
        group, offsets = optimizer.round_robin_bit16_groups[number], optimizer.round_robin_bit16_offsets[number]
        for parameter, offset in zip(group, offsets, strict=True):
            first, end = max(offset, begin), min(offset + parameter.numel(), begin + size)
            if first < end:
                fragments.append(Fragment(optimizer.param_names[parameter], first - offset, first - begin, end - first))
        yield Partition(flat.data, optimizer.optimizer.state[flat], fragments, flat.shape)


def _parameter_slices(engine: Engine) -> Iterator[Partition]:
    optimizer = engine.optimizer
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        fragments, offset = [], 0
        for parameter in group:
            width = parameter.partition_numel()
            start = dist.get_rank(group=parameter.ds_process_group) * width
            numel = max(0, min(width, parameter.ds_numel - start))
            if numel:
                fragments.append(Fragment(optimizer.param_names[parameter], start, offset, numel))
            offset += width
        yield Partition(flat.data, optimizer.optimizer.state[flat], fragments, flat.shape)
