"""What the weights of a model are like, parameter by parameter; one of them is in memory at a time, with what its spectrum
takes.

- norms ............ root mean square, largest magnitude, how many elements are NaN or infinite
- spectra .......... spectrum.py
- dead units ....... of a feed-forward network: its row of up or gate, or its column of down, is below DEAD of the median
- untouched rows ... of an embedding of a run: they still point exactly where the run's seed put them. A row whose token
                     never came only shrinks by weight decay, since its gradient is zero
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

DEAD = 0.01
SAME_DIRECTION = 1 - 1e-8  # rounding of fp32 turns a row by less; a single small step turns it by more
SHOWN_VALUES = 48
ROWS = 8192  # of an embedding that are in fp64 at once
FEED_FORWARD = {"feed_forward.up.weight": 1, "feed_forward.gate.weight": 1, "feed_forward.down.weight": 0}


@dataclass(frozen=True)
class MatrixStats:
    """One matrix. Figures are None where its elements are not all finite.

    `values` are singular values: (position in the spectrum, value), position 0 the largest and 1 the smallest. `error` is
    that of the largest, relative; `effective_rank` is None where only the largest values are known.
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
    """Weights of a norm, or a bias."""

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
    """All figures of one step; `against` is the step that changes are relative to, `dead` counts units by layer."""

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
    """All figures of `source`. `progress` is told each parameter before it is read.

    Raises UserError where `against` has parameters of other names or shapes.
    """
    if against is not None and dict(source.shapes) != dict(against.shapes):
        raise UserError(f"steps {source.step} and {against.step} do not have the same parameters")
    model = source.config.model
    matrices, vectors, strengths = [], [], _DeadUnits(model.n_layers)
    for name, shape in source.shapes.items():
        progress(name)
        weight = source.tensor(name)
        change = None if against is None else relative_change(weight, against.tensor(name))
        if len(shape) == 2:
            untouched = _untouched(source, name, weight)
            matrices.append(_matrix(name, weight, exact_up_to, untouched=untouched, change=change))
            strengths.add(name, weight)
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
        dead=strengths.dead(),
        notes=tuple(_notes(matrices, vectors)),
    )


def relative_change(weight: Tensor, before: Tensor) -> float | None:
    """‖W − W₀‖ / ‖W₀‖ in fp64; None where it is not a number."""
    norm = torch.linalg.vector_norm(before, dtype=torch.float64)
    change = float(torch.linalg.vector_norm(weight - before, dtype=torch.float64) / norm)
    return change if math.isfinite(change) else None


def untouched_rows(weight: Tensor, initial: Tensor) -> int:
    """How many rows are a positive multiple of their initial ones. A row of zeros points nowhere."""
    parts = zip(weight.split(ROWS), initial.split(ROWS), strict=True)
    cosines = [nn.functional.cosine_similarity(now.double(), then.double(), dim=-1) for now, then in parts]
    return sum(int((cosine > SAME_DIRECTION).sum()) for cosine in cosines)


def initial_embedding(name: str, shape: tuple[int, ...], config: Config) -> Tensor:
    """The rows that the run began with; a function of its seed, the name and the shape (model/init.py)."""
    module: nn.Module = nn.Embedding(*shape)
    for part in reversed(name.split(".")[:-1]):
        module = nn.ModuleDict({part: module})
    init_weights(module, config.model, config.run.seed)
    return next(module.parameters()).detach()


class _DeadUnits:
    """The weakest link of each feed-forward unit, by layer, relative to the median unit."""

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

    def dead(self) -> tuple[int | None, ...]:
        """None where a layer's weights are not finite, or all are zero."""
        return tuple(
            None if weakest is None or weakest.isnan().any() else int((weakest < DEAD).sum())
            for weakest in self._weakest
        )


def split_layer(name: str) -> tuple[int | None, str]:
    """blocks.3.attention.query.weight → (3, attention.query.weight); outside of blocks (None, name)."""
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
    at = torch.linspace(0, len(found.values) - 1, min(SHOWN_VALUES, len(found.values))).round().long().unique()
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
    figures = {} if not_finite else {"least": weight.min(), "median": weight.median(), "most": weight.max()}
    plain = {key: float(value) for key, value in figures.items()}
    return VectorStats(name, layer, part, weight.numel(), not_finite, **plain, change=change)


def _untouched(source: WeightSource, name: str, weight: Tensor) -> int | None:
    """None for what is no embedding, and where it is not known how it began: outside of runs, and with run.init_from."""
    state = getattr(source, "state", None)
    drawn = isinstance(state, Mapping) and "ledger" in state and source.config.run.init_from is None
    if not drawn or not name.startswith("embedding."):
        return None
    return untouched_rows(weight, initial_embedding(name, tuple(weight.shape), source.config))


def _notes(matrices: list[MatrixStats], vectors: list[VectorStats]) -> Iterator[str]:
    for found in (*matrices, *vectors):
        if found.not_finite:
            values = "value that is" if found.not_finite == 1 else "values that are"
            yield f"{found.name} holds {found.not_finite:,} {values} NaN or infinite"
