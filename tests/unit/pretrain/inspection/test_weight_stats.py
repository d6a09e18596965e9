import dataclasses
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import Tensor

from pretrain.cli.cmd_inspect import inspect
from pretrain.config.schema import RunConfig
from pretrain.errors import UserError
from pretrain.inspection.spectrum import LARGEST, spectrum
from pretrain.inspection.weight_stats import (
    MatrixStats,
    WeightsReport,
    initial_embedding,
    inspect_weights,
    split_layer,
    untouched_rows,
)
from pretrain.inspection.weights_page import weights_page
from pretrain.inspection.weights_table import print_report, remarks, report_json
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights
from tests.support.weight_source import MemorySource, memory_source, small_model


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decaying(rows: int, columns: int, power: float) -> Tensor:
    """Random directions, singular values 1, 2^-power, 3^-power, …"""
    count = min(rows, columns)
    left, right = torch.linalg.qr(randn(rows, count)).Q, torch.linalg.qr(randn(columns, count, seed=1)).Q
    return left @ torch.diag(torch.arange(1, count + 1).float() ** -power) @ right.T


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 9), (40, 24), (24, 40), (64, 64), (9_000, 12)])
def test_small_matrices_have_their_exact_spectrum(shape: tuple[int, int]) -> None:
    weight = randn(*shape)
    found = spectrum(weight)
    expected = torch.linalg.svdvals(weight.double())
    assert found.exact and len(found.values) == min(shape)
    torch.testing.assert_close(found.values, expected, atol=1e-7 * float(expected[0]), rtol=0)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_of_large_matrices_the_first_values_are_as_exact_as_they_say(shape: tuple[int, int], power: float) -> None:
    weight = decaying(*shape, power) if power else randn(*shape)
    found = spectrum(weight, exact_up_to=100)
    expected = torch.linalg.svdvals(weight.double())
    assert not found.exact and len(found.values) == LARGEST and found.effective_rank is None
    assert (found.values <= expected[:LARGEST] * (1 + 1e-5)).all()
    nearest = (expected - found.values[0]).abs().min() / found.values[0]
    assert nearest <= found.error + 1e-6
    assert found.error < (0.2 if power == 0 else 0.02)
    assert abs(float(found.values[0] / expected[0]) - 1) < 0.02
    exact = spectrum(weight)
    assert found.stable_rank == pytest.approx(exact.stable_rank, rel=0.04)


def test_ranks_of_matrices_that_are_known() -> None:
    identity = spectrum(torch.eye(30))
    assert identity.stable_rank == pytest.approx(30) and identity.effective_rank == pytest.approx(30)
    outer = spectrum(randn(30, 1) @ randn(1, 20, seed=1))
    assert outer.stable_rank == pytest.approx(1, rel=1e-5) and outer.effective_rank == pytest.approx(1, abs=1e-3)
    two = spectrum(torch.diag(torch.tensor([3.0, 1.0, 0.0])))
    assert two.stable_rank == pytest.approx(10 / 9)
    assert two.effective_rank == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    for exact_up_to in (10, 1):
        nothing = spectrum(torch.zeros(4, 3), exact_up_to)
        assert (nothing.stable_rank, nothing.effective_rank, nothing.error) == (0.0, 0.0, 0.0)


def matrix(report: WeightsReport, name: str) -> MatrixStats:
    [found] = [matrix for matrix in report.matrices if matrix.name == name]
    return found


def test_figures_of_a_matrix_and_of_a_norm() -> None:
    source = memory_source(None)
    report = inspect_weights(source)
    name = "blocks.1.feed_forward.down.weight"
    weight, found = source.tensors[name], matrix(report, name)
    assert (found.layer, found.part, found.shape) == (1, "feed_forward.down", (64, 160))
    assert found.rms == pytest.approx(float(weight.square().mean().sqrt()), rel=1e-6)
    assert found.largest == float(weight.abs().max())
    expected = torch.linalg.svdvals(weight.double())
    assert found.values[0] == (0.0, pytest.approx(float(expected[0]))) and found.values[-1][0] == 1.0
    assert found.values[-1][1] == pytest.approx(float(expected[-1]))
    for at, value in found.values:
        assert value == pytest.approx(float(expected[round(at * 63)]), rel=1e-6)
    norm = source.tensors["blocks.0.attention_norm.weight"]
    [vector] = [vector for vector in report.vectors if vector.name == "blocks.0.attention_norm.weight"]
    assert (vector.least, vector.median, vector.most) == tuple(map(float, (norm.min(), norm.median(), norm.max())))
    assert report.parameters == sum(tensor.numel() for tensor in source.tensors.values())
    assert {m.name for m in report.matrices} | {v.name for v in report.vectors} == set(source.tensors)


def test_each_parameter_is_read_once_and_alone() -> None:
    source, told = memory_source(None), []
    inspect_weights(source, progress=told.append)
    assert source.reads == list(source.tensors) == told


@pytest.mark.parametrize("ffn", ["swiglu", "gelu"])
def test_dead_units_are_counted_by_layer_whichever_link_is_broken(ffn: str) -> None:
    source = memory_source(None, small_model(ffn=ffn))
    assert inspect_weights(source).dead == (0, 0)
    source.tensors["blocks.1.feed_forward.up.weight"][3] = 0
    source.tensors["blocks.1.feed_forward.down.weight"][:, 7] *= 1e-3
    source.tensors["blocks.1.feed_forward.down.weight"][:, 8] *= 0.05  # weak, not dead
    first = "gate" if ffn == "swiglu" else "up"
    source.tensors[f"blocks.1.feed_forward.{first}.weight"][[3, 11]] *= 1e-4
    report = inspect_weights(source)
    assert report.dead == (0, 3)
    assert any("3 in layer 1, of 160 per layer" in line for line in remarks(report))


def as_run(source: MemorySource, seed: int) -> MemorySource:
    """With what a checkpoint of a run has: a state, and the seed that it began with."""
    source.config = dataclasses.replace(source.config, run=RunConfig(seed=seed))
    source.state = {"ledger": {}}  # type: ignore[attr-defined]
    return source


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True}, {"positions": "learned", "norm": "layernorm"}], ids=str
)
def test_rows_that_were_never_trained_are_those_that_only_shrank(changes: dict[str, Any]) -> None:
    source = as_run(memory_source(None, small_model(**changes)), seed=1)  # memory_source begins with seed 1
    report = inspect_weights(source)
    assert matrix(report, "embedding.tokens.weight").untouched == 1_009
    rows = source.tensors["embedding.tokens.weight"]
    rows *= 0.9
    rows[:1_000] += 1e-5 * randn(1_000, 64)
    rows[1_003] = 0
    rows[1_004] *= -1
    report = inspect_weights(source)
    assert matrix(report, "embedding.tokens.weight").untouched == 7
    assert any("embedding.tokens.weight: 7 of 1,009 rows" in line for line in remarks(report))
    assert matrix(report, "blocks.0.attention.query.weight").untouched is None
    if changes.get("positions") == "learned":
        assert matrix(report, "embedding.positions.weight").untouched == 128
    assert inspect_weights(as_run(source, seed=2)).matrices[0].untouched == 0


def test_weights_from_elsewhere_say_nothing_of_their_beginning() -> None:
    source = memory_source(None)
    assert matrix(inspect_weights(source), "embedding.tokens.weight").untouched is None
    begun = as_run(source, seed=1)
    assert matrix(inspect_weights(begun), "embedding.tokens.weight").untouched == 1_009
    begun.config = dataclasses.replace(begun.config, run=RunConfig(seed=1, init_from="other"))
    assert matrix(inspect_weights(begun), "embedding.tokens.weight").untouched is None


def test_the_initial_rows_are_those_that_training_begins_with() -> None:
    source = memory_source(None, small_model(positions="learned"))
    decoder = Decoder(source.config.model)
    init_weights(decoder, source.config.model, source.config.run.seed)
    for name in ("embedding.tokens.weight", "embedding.positions.weight"):
        expected = decoder.get_parameter(name)
        found = initial_embedding(name, tuple(expected.shape), source.config)
        assert torch.equal(found, expected)
        assert untouched_rows(expected.detach() * 0.5, found) == len(expected)


def test_weights_that_are_not_finite_are_named() -> None:
    source = memory_source(None)
    source.tensors["blocks.0.feed_forward.up.weight"][0, :2] = float("nan")
    source.tensors["blocks.1.attention_norm.weight"][0] = float("inf")
    report = inspect_weights(source, memory_source(None))
    bad = matrix(report, "blocks.0.feed_forward.up.weight")
    assert (bad.not_finite, bad.rms, bad.values, bad.change) == (2, None, (), None)
    assert report.notes == (
        "blocks.0.feed_forward.up.weight holds 2 values that are NaN or infinite",
        "blocks.1.attention_norm.weight holds 1 value that is NaN or infinite",
    )
    assert report.dead == (None, 0)
    assert matrix(report, "blocks.0.feed_forward.down.weight").rms is not None
    json.loads(report_json(report), parse_constant=pytest.fail)
    for text in (terminal(report), weights_page(report, "run")):
        assert "not finite" in text and "holds 2 values" in text


def test_changes_are_relative_to_the_other_step() -> None:
    before, now = memory_source(None), memory_source(None)
    now.step, before.step = 9, 3
    now.tensors["head.weight"] *= 1.25
    now.tensors["final_norm.weight"] *= 0.5
    report = inspect_weights(now, before)
    assert (report.step, report.against) == (9, 3)
    assert matrix(report, "head.weight").change == pytest.approx(0.25)
    assert {vector.name: vector.change for vector in report.vectors}["final_norm.weight"] == pytest.approx(0.5)
    assert matrix(report, "embedding.tokens.weight").change == 0.0
    assert "since" in terminal(report) and "25.00%" in terminal(report)
    assert "W₀ from step 3" in weights_page(report, "run") and "change" not in weights_page(inspect_weights(now), "run")
    with pytest.raises(UserError, match="do not have the same parameters"):
        inspect_weights(now, memory_source(None, small_model(d_ff=96)))


def terminal(report: WeightsReport, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_report(report, "run [bold]", console)
    return console.export_text()


@pytest.mark.parametrize(
    "changes", [{}, {"positions": "learned", "norm": "layernorm", "attention_bias": "all"}], ids=str
)
def test_the_tables_fit_eighty_columns(changes: dict[str, Any]) -> None:
    source = memory_source(None, small_model(**changes))
    text = terminal(inspect_weights(source, memory_source(None, small_model(**changes))))
    assert "run [bold] · step 7" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    down = [line for line in text.splitlines() if "feed_forward.down" in line]
    assert len(down) == 2 and all("64×160" in line for line in down)


def test_large_matrices_are_said_to_be_inexact() -> None:
    report = inspect_weights(memory_source(None), exact_up_to=50)
    [said] = [line for line in remarks(report) if "subspace iteration" in line]
    rough = [matrix for matrix in report.matrices if not matrix.exact]
    assert f"spectra of {len(rough)} large matrices" in said and len(rough) == len(report.matrices) - 4
    assert not any("subspace" in line for line in remarks(inspect_weights(memory_source(None))))


def test_names_say_where_a_parameter_is() -> None:
    assert split_layer("blocks.31.attention.query.weight") == (31, "attention.query.weight")
    assert split_layer("final_norm.weight") == (None, "final_norm.weight")


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href", "style")]
        self.found.append(tag)


def test_the_page_draws_every_kind_of_matrix_and_runs_nothing() -> None:
    report = inspect_weights(memory_source(None))
    page = weights_page(report, "<script>alert(1)</script>\u202e")
    tags = Tags(page).found
    assert not set(tags) & {"script", "img", "link", "iframe", "a"}
    assert "default-src 'none'; style-src 'sha256-" in page and "<script>" not in page and "\u202e" not in page
    # Four figures of two groups, two norms, seven spectra.
    assert tags.count("svg") == 4 * 2 + 2 + 7
    assert tags.count("tr") == len(report.matrices) + len(report.vectors) + 2
    assert page == weights_page(report, "<script>alert(1)</script>\u202e")


def test_the_numbers_are_there_for_programs() -> None:
    report = inspect_weights(memory_source(None))
    read = json.loads(report_json(report))
    assert read["step"] == 7 and len(read["matrices"]) == len(report.matrices)
    assert read["matrices"][0]["stable_rank"] == report.matrices[0].stable_rank


@pytest.mark.parametrize("command", [["weights"], ["attention", "text"]], ids=lambda command: command[0])
def test_what_is_not_a_run_is_refused(command: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(inspect, [command[0], str(tmp_path / "none"), *command[1:]])
    assert isinstance(result.exception, UserError) and "none" in str(result.exception)
    assert result.exception.exit_code == 2
