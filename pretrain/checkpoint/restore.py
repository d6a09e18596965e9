"""Loading: checks that a checkpoint fits the run (without torch), then fills the engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.checkpoint import layout
from pretrain.config.load import load_saved
from pretrain.config.schema import FREE_MODEL_KEYS, Config
from pretrain.data.order import differences, past_of
from pretrain.errors import CheckpointError
from pretrain.run_folder import Progress

if TYPE_CHECKING:
    from pretrain.distributed.engine import Engine
    from pretrain.distributed.world import World


# Keys that a resume needs; others may be missing in older checkpoints.
NEEDED = frozenset({"samples", "tokens", "order", "optimizer_steps", "loss_scale", "world_size"})


def check_state(folder: Path, state: dict[str, Any]) -> None:
    """Raise CheckpointError if the state lacks keys that a resume needs, as one of another version may."""
    missing = NEEDED - state.keys()
    if missing:
        raise CheckpointError(
            f"{folder / layout.STATE} lacks {', '.join(sorted(missing))}",
            hint="another version wrote it: resume with that version, or start a new run with another run.dir",
        )


def check_fits(folder: Path, state: dict[str, Any], config: Config, order: dict[str, Any]) -> None:
    """Raise CheckpointError that lists every difference between checkpoint and run that a resume does not allow."""
    saved = load_saved(folder / layout.CONFIG)
    problems = [
        f"model.{key}: {getattr(saved.model, key)} → {value}"
        for key, value in vars(config.model).items()
        if key not in FREE_MODEL_KEYS and value != getattr(saved.model, key)
    ]
    changed = differences(*(past_of(description, state["samples"]) for description in (state["order"], order)))
    problems += [f"order: {line}" for line in changed]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        hint = "start a new run with another run.dir; checkpoint.resume=never guarantees that nothing is resumed"
        if changed and all(line.startswith(("stages:", "sources:")) for line in changed) and _only_more(state, order):
            hint = (
                f"samples already read cannot change; from here on they can: {_as_stage(saved, config, state['step'])}"
            )
        raise CheckpointError(f"checkpoint {folder} does not fit this run; differences:\n{lines}", hint=hint)
    if state["step"] > config.schedule.total_steps:
        raise CheckpointError(
            f"schedule.total_steps={config.schedule.total_steps} is below the step of checkpoint {folder}",
            hint=f"schedule.total_steps={state['step']} or more",
        )


def _only_more(state: dict[str, Any], order: dict[str, Any]) -> bool:
    """Whether the run has all sources of the checkpoint, unchanged."""
    return bool(state["order"].get("sources", {}).items() <= order["sources"].items())


def _as_stage(saved: Config, config: Config, step: int) -> str:
    """Arguments that keep the past of a run and give its sources their new weights from `step` on."""
    sources, past = config.data.train, saved.data.train
    before = {name: past[name].weight if name in past else 0.0 for name in sources}
    return " ".join(
        [
            *(
                f"data.train.{name}.weight={weight:g}"
                for name, weight in before.items()
                if weight != sources[name].weight
            ),
            f"data.stages.from{step}.start_step={step}",
            *(f"data.stages.from{step}.weights.{name}={source.weight:g}" for name, source in sources.items()),
        ]
    )


def load_checkpoint(folder: Path, state: dict[str, Any], engine: "Engine", world: "World") -> Progress:
    """Fill a new or used engine from a checkpoint of any ZeRO stage and any number of ranks. Returns its progress."""
    from pretrain.checkpoint.pieces import PieceIndex
    from pretrain.checkpoint.rng_state import set_rng_state
    from pretrain.distributed.zero_partitions import (
        all_kinds,
        copy_masters_to_model,
        init_optimizer_state,
        load_loss_scale_state,
        partitions,
    )

    index = PieceIndex(layout.listed_files(folder, ".safetensors"))
    if (found := index.kinds()) > {"fp32"} and found != set(all_kinds(engine)):
        raise CheckpointError(
            f"checkpoint {folder} holds optimizer state {', '.join(sorted(found - {'fp32'}))}; the optimizer of this run has "
            f"{', '.join(engine.state_names)}",
            hint=f"run.init_from={folder} starts a new run, with another run.dir, from its weights",
        )
    for part in partitions(engine):
        init_optimizer_state(part, engine.state_names, state["optimizer_steps"])
        for kind in all_kinds(engine):  # in the order of the file: sequential reads
            for fragment in part.fragments:
                target = part.flat(kind).narrow(0, fragment.offset, fragment.numel)
                index.read(kind, fragment.name, fragment.start, target)
    copy_masters_to_model(engine)
    load_loss_scale_state(engine, state["loss_scale"])
    if state["world_size"] == world.size:
        # With another number of ranks no generator state fits; generators keep their initial seeds.
        for path in layout.listed_files(folder, f"rank-{world.rank:05d}.rng.json"):
            set_rng_state(layout.read_json(path), engine.device)
    return Progress.from_json(state)
