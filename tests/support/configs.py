"""Configurations in a temporary folder, for tests."""

from pathlib import Path

import pytest

from pretrain.config import Config, load_config
from pretrain.errors import ConfigError


def write_config(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def load_text(folder: Path, text: str, *overrides: str) -> Config:
    return load_config(write_config(folder / "run.yaml", text), overrides).config


def problems_of(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(folder, text, *overrides)
    return caught.value.problems
