"""Loading: whether a checkpoint fits the run (no torch needed), and putting it into the engine."""

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


# What training needs to go on; the rest of a state may be missing in an older checkpoint.
NEEDED = frozenset({"samples", "tokens", "order", "optimizer_steps", "loss_scale", "world_size"})


def check_state(folder: Path, state: dict[str, Any]) -> None:
    """Raise CheckpointError for a state that lacks what training needs, though its hash is right."""
    missing = NEEDED - state.keys()
    if missing:
        raise CheckpointError(
            f"{folder / layout.STATE} lacks {', '.join(sorted(missing))}",
            hint="another version wrote it; resume with that one, or start again with a new run.dir",
        )


def check_fits(folder: Path, state: dict[str, Any], config: Config, order: dict[str, Any]) -> None:
    """Raise CheckpointError with everything in which a checkpoint and a run differ that must be equal."""
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
        hint = "a new run.dir starts another run; checkpoint.resume=never makes sure of it"
        if any(line.startswith(("stages:", "sources:")) for line in changed):
            hint = (
                f"what has been read cannot change; other weights or sources from here on: "
                f"data.stages.NAME.start_step={state['step']} data.stages.NAME.weights.SOURCE=…"
            )
        raise CheckpointError(f"checkpoint {folder} does not fit this run; what would change:\n{lines}", hint=hint)
    if state["step"] > config.schedule.total_steps:
        raise CheckpointError(
            f"schedule.total_steps={config.schedule.total_steps} is below the step of checkpoint {folder}",
            hint=f"schedule.total_steps={state['step']} or more",
        )


def load_checkpoint(folder: Path, state: dict[str, Any], engine: "Engine", world: "World") -> Progress:
    """Put a checkpoint into an engine, fresh or used, whatever stage and number of ranks wrote it."""
    from pretrain.checkpoint.pieces import KINDS, PieceIndex
    from pretrain.checkpoint.rng_state import set_rng_state
    from pretrain.distributed.zero_partitions import load_loss_scale_state, partitions, prepare_state, publish_masters

    index = PieceIndex(layout.listed_files(folder, ".safetensors"))
    for part in partitions(engine):
        prepare_state(part, state["optimizer_steps"])
        for kind in KINDS:  # in the order in which they were written
            for fragment in part.fragments:
                target = part.flat(kind).narrow(0, fragment.offset, fragment.numel)
                index.read(kind, fragment.name, fragment.start, target)
    publish_masters(engine)
    load_loss_scale_state(engine, state["loss_scale"])
    if state["world_size"] == world.size:
        # With another number of ranks there is no state to continue; the seeds of the start remain.
        for path in layout.listed_files(folder, f"rank-{world.rank:05d}.rng.json"):
            set_rng_state(layout.read_json(path), engine.device)
    return Progress.from_json(state)
