"""Display of a configuration: YAML, with the origin of each value as a comment."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import yaml

from pretrain.config.load import LoadedConfig


def show_config(loaded: LoadedConfig) -> str:
    """One value per line, with its origin: `default`, a file, or `command line`."""
    rows = list(_rows(dataclasses.asdict(loaded.config), "", 0, loaded))
    width = min(60, max(len(text) for text, origin in rows if origin))
    return "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in rows)


def _rows(tree: dict[str, Any], prefix: str, depth: int, loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name, indent = f"{prefix}{key}", "  " * depth
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:", ""
            yield from _rows(value, f"{name}.", depth + 1, loaded)
        else:
            yield f"{indent}{key}: {_scalar(value)}", loaded.origins.get(name, "default")


def _scalar(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("...\n").strip()
