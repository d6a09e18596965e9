"""Process groups that save a small model at every ZeRO stage, and others that load all of it into stages of their own.

What an engine holds is asked from DeepSpeed's own interface, and what a checkpoint holds from the safetensors library, so
that neither answer comes from the code under test.
"""

import json
import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from pretrain.checkpoint import layout
from pretrain.checkpoint.restore import load_checkpoint
from pretrain.checkpoint.snapshot import take_snapshot, write_snapshot
from pretrain.config.check import find_conflicts
from pretrain.config.schema import (
    BatchConfig,
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from pretrain.distributed.collectives import end_group, gather_to_all, start_group, sum_over_ranks
from pretrain.distributed.engine import Batch, Engine
from pretrain.distributed.world import World
from pretrain.distributed.zero_partitions import partitions
from pretrain.optim.schedule import lr_fraction
from pretrain.run_folder import Progress
from tests.support.runs import EAGER_ZERO3

os.environ.setdefault("DS_ACCELERATOR", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed  # here, so that a fork server imports it once for all processes
    import torch._dynamo  # torch.optim would import it in each process, for seconds
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

CPU = torch.device("cpu")
SAVED, FURTHER = 3, 10  # steps before the save, and after it
GLOBAL_BATCH = 12
MICRO_BATCH = {1: 4, 2: 3, 3: 2, 4: 3}  # by world size: 3, 2, 2 and 1 accumulation steps
KINDS = ("fp32", "exp_avg", "exp_avg_sq")
# Nothing is divisible by 2, 3 or 4: every rank's share ends somewhere inside a parameter, and is padded.
MODEL = ModelConfig(
    vocab_size=131,
    n_layers=2,
    d_model=35,
    n_heads=5,
    n_kv_heads=1,
    d_ff=53,
    max_seq_len=13,
    positions="learned",
)
State = dict[tuple[str, str], Tensor]  # whole flat tensors by kind and parameter


@dataclass(frozen=True)
class Setup:
    """How a process group trains. A checkpoint is named after the one that wrote it."""

    stage: int
    world: int
    precision: str = "fp32"
    tied: bool = False
    zero: dict[str, Any] = field(default_factory=dict)  # options of `zero_optimization`
    deepspeed: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        tied = "-tied" if self.tied else ""
        return f"stage{self.stage}-world{self.world}-{self.precision}{tied}{self.label}"


class Outcome(NamedTuple):
    """One load: what differed from the checkpoint, and the losses of the steps after it."""

    source: str
    target: str
    wrong: list[str]
    losses: list[float]


def setup(stage: int, world: int, precision: str = "fp32", *, tied: bool = False) -> Setup:
    """ZeRO-3 has several sub-groups a parameter group where the world is even, and DeepSpeed's defaults where it is odd."""
    small = stage == 3 and world % 2 == 0
    zero = {**EAGER_ZERO3["zero_optimization"], "sub_group_size": 1_500} if small else {}
    return Setup(stage, world, precision, tied, zero)


def round_robin(stage: int, world: int) -> Setup:
    """Parameters lie in another order than the model's, dealt out to the ranks in turn."""
    return Setup(stage, world, zero={"round_robin_gradients": True}, label="-round-robin")


def offloaded(stage: int, world: int, *, parameters: bool = False) -> Setup:
    """DeepSpeed's offload of states, and at stage 3 of parameters, to the host."""
    sections = ("offload_optimizer", "offload_param") if parameters else ("offload_optimizer",)
    return Setup(
        stage,
        world,
        zero={section: {"device": "cpu"} for section in sections},
        label=f"-{len(sections)}-offloaded",
    )


def make_config(how: Setup) -> Config:
    """The configuration of a setup; only what may change within a run differs between setups."""
    config = Config(
        model=replace(MODEL, tie_embeddings=how.tied),
        data=DataConfig(seq_len=11),
        batch=BatchConfig(global_batch_size=GLOBAL_BATCH, micro_batch_size=MICRO_BATCH[how.world]),
        optimizer=OptimizerConfig(lr=2e-3, beta1=0.85, beta2=0.97, eps=3e-8, weight_decay=0.2),
        schedule=ScheduleConfig(total_steps=SAVED + FURTHER, warmup_steps=4),
        engine=EngineConfig(
            zero_stage=how.stage,
            precision=how.precision,
            device="cpu",
            deepspeed={**({"zero_optimization": how.zero} if how.zero else {}), **how.deepspeed},
        ),
    )
    assert not find_conflicts(config), find_conflicts(config)
    return config


def global_batch(step: int) -> Tensor:
    """The tokens of a step, (GLOBAL_BATCH, seq_len + 1), whoever reads them. Four batches in turn, so that the loss falls."""
    return torch.randint(MODEL.vocab_size, (GLOBAL_BATCH, 12), generator=torch.Generator().manual_seed(step % 4))


def train(engine: Engine, world: World, steps: range) -> list[float]:
    """The mean loss of each of these steps (the first is 1)."""
    config, losses = engine.config, []
    for step in steps:
        mine = global_batch(step).chunk(world.size)[world.rank].split(config.batch.micro_batch_size)
        lr = config.optimizer.lr * lr_fraction(step, config.schedule)
        targets = GLOBAL_BATCH * config.data.seq_len
        sums = engine.train_step([Batch(part[:, :-1], part[:, 1:]) for part in mine], targets, lr)
        losses.append(sum_over_ranks([sums.cross_entropy], CPU)[0] / targets)
        assert all(group["lr"] == lr for group in engine.optimizer.param_groups)
    return losses


def save(engine: Engine, world: World, place: Path, step: int) -> Path:
    """A checkpoint as the saver makes it, all in the calling thread."""
    state = {"order": {}, "ledger": {}, "jumps": [], "losses": [], "validation_loss": None}
    progress = Progress(step, step * GLOBAL_BATCH, step * GLOBAL_BATCH * engine.config.data.seq_len)
    snapshot = take_snapshot(engine, world, progress, state, tokenizer=None, buffers={})
    written = gather_to_all(write_snapshot(layout.staging_folder(place, step, 1), snapshot))
    if world.is_main:
        layout.commit(place, step, [entry for entries in written for entry in entries], 1)
    dist.barrier()
    return place / layout.checkpoint_name(step)


def save_all(world: World, root: Path, setups: Sequence[Setup]) -> None:
    """For each setup: train, save to root/NAME, and train on; rank 0 writes the losses of that to root/NAME.json."""
    for how in setups:
        engine = Engine(make_config(how), world, CPU)
        train(engine, world, range(1, SAVED + 1))
        save(engine, world, root / how.name, SAVED)
        losses = train(engine, world, _further(how))
        if world.is_main:
            (root / f"{how.name}.json").write_text(json.dumps(losses))
        engine.close()


def load_all(world: World, root: Path, pairs: Sequence[tuple[Setup, Sequence[Setup]]], results: Path) -> None:
    """For each setup, load the checkpoints of others one after the other into one engine.

    A list of Outcome is written to `results`.RANK.
    """
    outcomes = []
    for how, sources in pairs:
        engine = Engine(make_config(how), world, CPU)
        if how.zero.get("sub_group_size"):
            assert len(engine.optimizer.fp16_groups) > 4, "the sub-groups are too large to be several"
        for source in sources:
            folder = root / source.name / layout.checkpoint_name(SAVED)
            progress = load_checkpoint(folder, layout.verify(folder), engine, world)
            assert progress.step == SAVED
            wrong = differences(engine, read_state(folder))
            outcomes.append(Outcome(source.name, how.name, wrong, train(engine, world, _further(how))))
        engine.close()
    Path(f"{results}.{world.rank}").write_text(json.dumps(outcomes))


def read_state(folder: Path) -> State:
    """What a checkpoint holds: all its pieces put together, with every element there once."""
    pieces: dict[tuple[str, str], dict[int, Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a safe_open handle is no mapping
                kind, start, name = key.split("/", 2)
                found = pieces.setdefault((kind, name), {})
                assert int(start) not in found, key
                found[int(start)] = file.get_tensor(key)
    for key, found in pieces.items():
        ends = [start + piece.numel() for start, piece in sorted(found.items())]
        assert sorted(found) == [0, *ends[:-1]], f"{key}: gaps or overlaps"
    return {key: torch.cat([found[start] for start in sorted(found)]) for key, found in pieces.items()}


def engine_state(engine: Engine) -> Iterator[tuple[str, str, Tensor]]:
    """What an engine holds, gathered by DeepSpeed: (kind, parameter, whole tensor); `weights` are those of the forward."""
    known = KINDS
    if engine.stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()
        if engine.optimizer.round_robin_gradients:
            known = ()  # here DeepSpeed's interface gives one parameter's numbers for another's: the losses must tell
    for name, parameter in engine.model.named_parameters():
        for kind in known:
            yield kind, name, _gathered(engine, parameter, kind)
        if engine.stage == 3:
            with deepspeed.zero.GatheredParameters(parameter):
                weights = parameter.data.clone()
        else:
            weights = parameter.data
        yield "weights", name, weights


def differences(engine: Engine, expected: State) -> list[str]:
    """Where an engine's state is not that of a checkpoint, bit for bit."""
    wrong, seen = [], set()
    for kind, name, tensor in engine_state(engine):
        seen.add(name)
        want = expected["fp32" if kind == "weights" else kind, name].to(tensor.dtype)
        if not same_bits(tensor.detach().flatten(), want):
            wrong.append(f"{kind} of {name}")
    wrong += [f"{name} is not in the engine" for name in {name for _, name in expected} - seen]
    steps = {float(part.state["step"]) for part in partitions(engine)}
    wrong += [f"Adam's step is {steps}"] if steps != {float(SAVED)} else []
    return wrong + _wrong_groups(engine)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Not torch.equal, to which 0 and -0 are the same."""
    bits = torch.int32 if one.dtype == torch.float32 else torch.int16
    return one.dtype == other.dtype and torch.equal(one.view(bits), other.view(bits))


def run_group(world_size: int, work: Callable[..., None], *arguments: Any, scratch: Path) -> None:
    """`work(world, *arguments)` in as many processes as the world is large. Fails with the first one's traceback."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    port = _free_port()
    processes = [
        server.Process(target=_enter, args=(World(rank, world_size, rank, world_size), port, work, arguments, scratch))
        for rank in range(world_size)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(500)
    finally:
        for process in processes:
            process.kill()
    failures = "\n".join(path.read_text() for path in sorted(scratch.glob("failed-*")))
    assert [process.exitcode for process in processes] == [0] * world_size, failures


def _enter(world: World, port: int, work: Callable[..., None], arguments: tuple, scratch: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        start_group(world, CPU, timeout_minutes=2)
        work(world, *arguments)
        end_group()
    except BaseException:
        (scratch / f"failed-{world.size}-{world.rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # DeepSpeed's threads must not hold up the end


def _further(how: Setup) -> range:
    """bf16 rounds too coarsely for its losses to be compared: one step, so that the next load finds a used engine."""
    return range(SAVED + 1, SAVED + 1 + (FURTHER if how.precision == "fp32" else 1))


def _gathered(engine: Engine, parameter: nn.Parameter, kind: str) -> Tensor:
    if engine.stage == 0:
        return parameter.data if kind == "fp32" else engine.optimizer.state[parameter][kind]
    return safe_get_full_fp32_param(parameter) if kind == "fp32" else safe_get_full_optimizer_state(parameter, kind)


def _wrong_groups(engine: Engine) -> list[str]:
    """Parameter groups whose hyper-parameters are not those of the configuration. The learning rate: see `train`."""
    config, wrong = engine.config.optimizer, []
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    if sorted(set(decays)) != [0.0, config.weight_decay]:
        wrong.append(f"weight decays are {decays}")
    for group in engine.optimizer.param_groups:
        found = (tuple(group["betas"]), group["eps"])
        if found != ((config.beta1, config.beta2), config.eps):
            wrong.append(f"betas and eps are {found}")
    return wrong


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
