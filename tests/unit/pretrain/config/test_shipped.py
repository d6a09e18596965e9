"""The shipped configurations and the defaults."""

import dataclasses
import math
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from pretrain.config import Config, load_config
from pretrain.config.build import build
from pretrain.plan.counts import count_parameters
from tests.support.repository import ROOT

CONFIGS = ROOT / "configs"
SECTIONS = get_type_hints(Config)

# Published sizes where a model's usual name is rounded further than 8 %.
PUBLISHED = {"1b": 1.24e9, "2m": 2.4e6, "olmo2-1b": 1.485e9}


RUNS = sorted(set(CONFIGS.rglob("*.yaml")) - set((CONFIGS / "cluster").glob("*.yaml")))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_shipped_file_loads(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize("path", sorted((CONFIGS / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_model_file_is_as_large_as_its_name_says(path: Path) -> None:
    number, unit = re.fullmatch(r"(?:\w+-)?([\d.]+)([mb])", path.stem).groups()
    named = PUBLISHED.get(path.stem, float(number) * {"m": 1e6, "b": 1e9}[unit])
    assert math.isclose(count_parameters(load_config(path).config.model), named, rel_tol=0.08)


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_every_knob_has_a_help_text_and_a_default_that_fits_its_range(section: str) -> None:
    for field in dataclasses.fields(SECTIONS[section]):
        if dataclasses.is_dataclass(field.default_factory):
            continue  # a section of its own
        assert field.metadata["help"].endswith("."), field.name
        assert len(field.metadata["help"]) > 10, field.name
    problems: list[str] = []
    built = build({section: dataclasses.asdict(SECTIONS[section]())}, problems)
    assert problems == []
    assert built == Config()
