"""Every ZeRO stage on every number of processes reads what any other wrote: bit for bit, and trains on as it would have."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import layout
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights
from pretrain.model.loss import plain_cross_entropy
from pretrain.optim.adamw import build_optimizer
from pretrain.optim.schedule import lr_fraction
from tests.support.elastic import (
    KINDS,
    SAVED,
    Outcome,
    Setup,
    State,
    global_batch,
    load_all,
    make_config,
    offloaded,
    read_state,
    round_robin,
    run_group,
    save_all,
    setup,
)
from tests.support.other_optimizer import resume_with_momentum

STAGES, WORLDS = (0, 1, 2, 3), (1, 2, 3, 4)
CLOSE = 1e-6  # of losses: another number of ranks adds up in another order
Pair = tuple[Setup, Setup]  # who saves, who loads


def plain_state(*, tied: bool) -> State:
    """Parameters and moments after SAVED steps of a loop in which nothing of DeepSpeed runs."""
    config = make_config(setup(0, 1, tied=tied))
    model = Decoder(config.model)
    init_weights(model, config.model, config.run.seed)
    optimizer = build_optimizer(model, config.optimizer)
    for step in range(1, SAVED + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * lr_fraction(step, config.schedule)
        tokens = global_batch(step)
        (plain_cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]) / tokens[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return {
        (kind, name): (parameter.detach() if kind == "fp32" else optimizer.state[parameter][kind]).flatten()
        for name, parameter in model.named_parameters()
        for kind in KINDS
    }


def save_setups(root: Path, setups: Iterable[Setup]) -> None:
    """One process group for each number of ranks."""
    distinct = {how.name: how for how in setups}
    for world in WORLDS:
        mine = [how for how in distinct.values() if how.world == world]
        if mine:
            run_group(world, save_all, root, mine, scratch=root)


def load_pairs(root: Path, pairs: Iterable[Pair]) -> list[Outcome]:
    """What each rank says of each load; which checkpoint meets a fresh engine, and which a used one, is drawn by lot."""
    sources: dict[str, list[Setup]] = {}
    targets = {target.name: target for _, target in pairs}
    for source, target in pairs:
        sources.setdefault(target.name, []).append(source)
    outcomes: list[Outcome] = []
    for world in WORLDS:
        mine = [(how, random.Random(name).sample(sources[name], len(sources[name]))) for name, how in targets.items()]
        mine = [(how, found) for how, found in mine if how.world == world]
        if mine:
            run_group(world, load_all, root, mine, root / f"loaded-{world}", scratch=root)
            for rank in range(world):
                outcomes += [Outcome(*line) for line in json.loads((root / f"loaded-{world}.{rank}").read_text())]
    return outcomes


def check(root: Path, pairs: list[Pair]) -> None:
    """Save, load, and compare everything; all problems in one failure."""
    save_setups(root, [source for source, _ in pairs])
    outcomes = load_pairs(root, pairs)
    assert len(outcomes) == sum(target.world for _, target in pairs)
    problems = []
    for outcome in outcomes:
        undisturbed = json.loads((root / f"{outcome.source}.json").read_text())
        assert len(undisturbed) == len(outcome.losses)
        worst = max(abs(one - other) for one, other in zip(undisturbed, outcome.losses, strict=True))
        if outcome.wrong:
            problems.append(f"{outcome.source} → {outcome.target}: {', '.join(outcome.wrong[:5])}")
        if "fp32" in outcome.source and not worst <= CLOSE:
            problems.append(f"{outcome.source} → {outcome.target}: losses differ by {worst}")
    assert not problems, "\n".join(problems)


def check_saved(root: Path, setups: Iterable[Setup]) -> None:
    """What was saved is what a plain loop gives: a wrong name that loading undoes would not show otherwise."""
    expected = {tied: plain_state(tied=tied) for tied in (False, True)}
    for how in {how.name: how for how in setups}.values():
        found = read_state(root / how.name / layout.checkpoint_name(SAVED))
        assert found.keys() == expected[how.tied].keys(), how.name
        for key, want in expected[how.tied].items():
            assert found[key].shape == want.shape
            assert float((found[key] - want).abs().max()) <= 1e-4 * float(want.abs().max()), f"{how.name}: {key}"


def crossing(setups: list[Setup]) -> list[Pair]:
    """All pairs."""
    return [(source, target) for source in setups for target in setups]


def matrix(precision: str = "fp32", worlds: Iterable[int] = WORLDS, *, tied: bool = False) -> list[Setup]:
    """Every stage that there is in a precision, on these numbers of ranks."""
    stages = STAGES if precision == "fp32" else STAGES[1:]
    return [setup(stage, world, precision, tied=tied) for stage in stages for world in worlds]


def test_a_sample_of_stages_and_worlds(tmp_path: Path) -> None:
    """Three ranks are the hard number: no power of two, and no divisor of any shape."""
    lots = random.Random(3)
    pairs = [pair for tied in (False, True) for pair in lots.sample(crossing(matrix(worlds=(1, 2, 3), tied=tied)), 3)]
    dealt = round_robin(2, 3)
    pairs += [(dealt, setup(3, 1)), (setup(3, 2), dealt)]
    check(tmp_path, pairs)
    check_saved(tmp_path, [source for source, _ in pairs])


@pytest.mark.slow
def test_every_stage_and_world_into_every_other(tmp_path: Path) -> None:
    setups = matrix()
    check(tmp_path, crossing(setups))
    check_saved(tmp_path, setups)


@pytest.mark.slow
def test_every_stage_and_world_into_every_other_in_bf16_with_tied_embeddings(tmp_path: Path) -> None:
    check(tmp_path, crossing(matrix("bf16", tied=True)))


def test_offload_changes_no_loss_and_resumes_without_it(tmp_path: Path) -> None:
    """Both ways, and with the losses of the plain loop, which `check_saved` compares."""
    odd = [offloaded(2, 2), offloaded(3, 2), offloaded(3, 2, parameters=True)]
    usual = setup(3, 2)
    check(tmp_path, [*((one, usual) for one in odd), (usual, odd[-1])])
    check_saved(tmp_path, odd)
    after = [json.loads((tmp_path / f"{how.name}.json").read_text()) for how in (usual, *odd)]
    assert all(losses == pytest.approx(after[0], abs=CLOSE) for losses in after)


@pytest.mark.parametrize("stage", [0, 2])
def test_an_optimizer_that_declares_its_state_resumes_with_all_of_it(stage: int, tmp_path: Path) -> None:
    """SGD with momentum: one tensor, under another name than Adam's."""
    run_group(1, resume_with_momentum, tmp_path, stage, scratch=tmp_path)
    before, after, uninterrupted = json.loads((tmp_path / "losses.json").read_text())
    assert after == uninterrupted and after != before


@pytest.mark.slow
def test_offloaded_states_and_parameters_dealt_round_robin(tmp_path: Path) -> None:
    odd = [offloaded(stage, 2) for stage in (1, 2, 3)]
    odd += [offloaded(3, 3, parameters=True), round_robin(1, 2), round_robin(2, 2), round_robin(2, 3)]
    usual = [setup(0, 1), setup(2, 3), setup(3, 2)]
    check(tmp_path, [pair for one in odd for other in usual for pair in ((one, other), (other, one))])
    check_saved(tmp_path, odd)
