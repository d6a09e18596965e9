"""Statistics of a model's weights. One parameter is in memory at a time.

- norms ............ root mean square, largest magnitude, number of NaN and infinite elements
- spectra .......... spectrum.py
- dead units ....... feed-forward units whose row of up or gate, or column of down, has a norm below DEAD_BELOW of the median
- untouched rows ... embedding rows with the direction of their random initialization: without its token in the data, a row has
                     no gradient, and weight decay only shrinks it
- change ........... ‖W − W₀‖ / ‖W₀‖ against another step
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema import Config
from pretrain.convert.files.weight_files import WeightSource
from pretrain.errors import UserError
from pretrain.inspection.spectrum import EXACT_UP_TO, spectrum
from pretrain.model.init import init_weights

DEAD_BELOW = 0.01
SAME_DIRECTION = 1 - 1e-8  # cosine; between fp32 rounding and the smallest optimizer step
SPECTRUM_POINTS = 48
ROWS = 8192  # of an embedding, converted to fp64 at a time
# Dimension to reduce for the norm of each unit.
FEED_FORWARD = {"feed_forward.up.weight": 1, "feed_forward.gate.weight": 1, "feed_forward.down.weight": 0}


@dataclass(frozen=True)
class MatrixStats:
    """Statistics of a matrix; None unless all elements are finite.

    `values` are (position in the spectrum, singular value), from position 0, the largest, to 1. `error` bounds the relative
    error of the largest; `effective_rank` is None if only the largest values are known.
    """

    name: str
    layer: int | None
    part: str
    shape: tuple[int, int]
    not_finite: int
    rms: float | None = None
    largest: float | None = None
    values: tuple[tuple[float, float], ...] = ()
    exact: bool = True
    error: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    untouched: int | None = None
    change: float | None = None


@dataclass(frozen=True)
class VectorStats:
    """Statistics of a norm's weights, or of a bias."""

    name: str
    layer: int | None
    part: str
    length: int
    not_finite: int
    least: float | None = None
    median: float | None = None
    most: float | None = None
    change: float | None = None


@dataclass(frozen=True)
class WeightsReport:
    """Statistics of one step. `against` is the step that changes are relative to; `dead` counts units per layer."""

    step: int
    against: int | None
    parameters: int
    units: int
    tied: bool
    matrices: tuple[MatrixStats, ...]
    vectors: tuple[VectorStats, ...]
    dead: tuple[int | None, ...]
    notes: tuple[str, ...] = field(default=())


def inspect_weights(
    source: WeightSource,
    against: WeightSource | None = None,
    *,
    exact_up_to: int = EXACT_UP_TO,
    progress: Callable[[str], None] = lambda name: None,
) -> WeightsReport:
    """Statistics of all parameters. Calls `progress(name)` before reading each.

    Raises UserError if `against` has parameters of other names or shapes.
    """
    if against is not None and dict(source.shapes) != dict(against.shapes):
        raise UserError(f"steps {source.step} and {against.step} do not have the same parameters")
    model = source.config.model
    matrices, vectors, dead_units = [], [], _DeadUnits(model.n_layers)
    for name, shape in source.shapes.items():
        progress(name)
        weight = source.tensor(name)
        change = None if against is None else relative_change(weight, against.tensor(name))
        if len(shape) == 2:
            untouched = _untouched(source, name, weight)
            matrices.append(_matrix(name, weight, exact_up_to, untouched=untouched, change=change))
            dead_units.add(name, weight)
        else:
            vectors.append(_vector(name, weight, change))
    return WeightsReport(
        step=source.step,
        against=None if against is None else against.step,
        parameters=sum(math.prod(shape) for shape in source.shapes.values()),
        units=model.d_ff,
        tied=model.tie_embeddings,
        matrices=tuple(matrices),
        vectors=tuple(vectors),
        dead=dead_units.counts(),
        notes=tuple(_notes(matrices, vectors)),
    )


def relative_change(weight: Tensor, before: Tensor) -> float | None:
    """‖W − W₀‖ / ‖W₀‖ in fp64; None if it is not finite."""
    norm = torch.linalg.vector_norm(before, dtype=torch.float64)
    change = float(torch.linalg.vector_norm(weight - before, dtype=torch.float64) / norm)
    return change if math.isfinite(change) else None


def untouched_rows(weight: Tensor, initial: Tensor) -> int:
    """Number of rows that are a positive multiple of their initial row. Rows of zeros do not count."""
    parts = zip(weight.split(ROWS), initial.split(ROWS), strict=True)
    cosines = [nn.functional.cosine_similarity(now.double(), first.double(), dim=-1) for now, first in parts]
    return sum(int((cosine > SAME_DIRECTION).sum()) for cosine in cosines)


def initial_embedding(name: str, shape: tuple[int, ...], config: Config) -> Tensor:
    """Random initialization of an embedding: a function of the run's seed, its name and shape (`model.init`)."""
    module: nn.Module = nn.Embedding(*shape)
    for part in reversed(name.split(".")[:-1]):
        module = nn.ModuleDict({part: module})
    init_weights(module, config.model, config.run.seed)
    return next(module.parameters()).detach()


class _DeadUnits:
    """Per layer and feed-forward unit: the smallest norm of its weights, relative to the median unit."""

    def __init__(self, layers: int) -> None:
        self._weakest: list[Tensor | None] = [None] * layers

    def add(self, name: str, weight: Tensor) -> None:
        layer, part = split_layer(name)
        if layer is None or part not in FEED_FORWARD:
            return
        norms_F = torch.linalg.vector_norm(weight, dim=FEED_FORWARD[part], dtype=torch.float64)
        relative_F = norms_F / norms_F.median()
        weakest = self._weakest[layer]
        self._weakest[layer] = relative_F if weakest is None else torch.minimum(weakest, relative_F)

    def counts(self) -> tuple[int | None, ...]:
        """Dead units per layer; None if the weights are not finite or all zero."""
        return tuple(
            None if weakest is None or weakest.isnan().any() else int((weakest < DEAD_BELOW).sum())
            for weakest in self._weakest
        )


def split_layer(name: str) -> tuple[int | None, str]:
    """blocks.3.attention.query.weight → (3, attention.query.weight); outside of blocks → (None, name)."""
    head, _, rest = name.partition(".")
    number, _, part = rest.partition(".")
    return (int(number), part) if head == "blocks" else (None, name)


def _matrix(name: str, weight: Tensor, exact_up_to: int, **known: Any) -> MatrixStats:
    layer, part = split_layer(name)
    not_finite = weight.numel() - int(torch.isfinite(weight).sum())
    base = {"name": name, "layer": layer, "part": part.removesuffix(".weight"), "shape": tuple(weight.shape)}
    if not_finite:
        return MatrixStats(**base, not_finite=not_finite, **known)
    found = spectrum(weight, exact_up_to)
    last = max(min(weight.shape) - 1, 1)
    at = torch.linspace(0, len(found.values) - 1, min(SPECTRUM_POINTS, len(found.values))).round().long().unique()
    return MatrixStats(
        **base,
        not_finite=0,
        rms=float(torch.linalg.vector_norm(weight, dtype=torch.float64)) / math.sqrt(weight.numel()),
        largest=float(weight.abs().max()),
        values=tuple((int(i) / last, float(found.values[i])) for i in at),
        exact=found.exact,
        error=found.error,
        stable_rank=found.stable_rank,
        effective_rank=found.effective_rank,
        **known,
    )


def _vector(name: str, weight: Tensor, change: float | None) -> VectorStats:
    layer, part = split_layer(name)
    not_finite = weight.numel() - int(torch.isfinite(weight).sum())
    values = {} if not_finite else {"least": weight.min(), "median": weight.median(), "most": weight.max()}
    plain = {key: float(value) for key, value in values.items()}
    return VectorStats(name, layer, part, weight.numel(), not_finite, **plain, change=change)


def _untouched(source: WeightSource, name: str, weight: Tensor) -> int | None:
    """Untouched rows; None unless it is an embedding of a run that started from random initialization."""
    state = getattr(source, "state", None)
    random_init = isinstance(state, Mapping) and "ledger" in state and source.config.run.init_from is None
    if not random_init or not name.startswith("embedding."):
        return None
    return untouched_rows(weight, initial_embedding(name, tuple(weight.shape), source.config))


def _notes(matrices: list[MatrixStats], vectors: list[VectorStats]) -> Iterator[str]:
    for found in (*matrices, *vectors):
        if found.not_finite:
            values = "value that is" if found.not_finite == 1 else "values that are"
            yield f"{found.name} holds {found.not_finite:,} {values} NaN or infinite"
