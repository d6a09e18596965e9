"""From YAML files and `key=value` arguments to one checked, frozen Config.

    1. read the file and the files it `extends:`, parents first     (OmegaConf parses YAML and refuses duplicate keys)
    2. apply the `key=value` arguments
    3. resolve ${interpolations}
    4. check names, types and ranges against the dataclasses        build.py
    5. check the rules between values                               check.py

All steps add to one list of problems, which is reported as one error.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.config.build import build
from pretrain.config.check import find_conflicts, find_wrong_paths
from pretrain.config.schema import Config
from pretrain.errors import ConfigError, UserError

Tree = dict[str, Any]
COMMAND_LINE = "command line"
_KEY = re.compile(r"[\w-]+(\.[\w-]+)*")


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration; `origins` maps each dotted key that is not a default to its file, or the command line."""

    config: Config
    origins: Mapping[str, str]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read, merge and check a configuration.

    Raises UserError if a file is missing, and ConfigError with all other problems.
    """
    problems: list[str] = []
    tree, origins = read_tree(Path(path), overrides, problems)
    config = build(tree, problems)
    if not problems:
        problems += [*find_wrong_paths(config), *find_conflicts(config)]
    if problems:
        raise ConfigError(problems, source=str(path))
    return LoadedConfig(config, origins)


def read_tree(path: Path, overrides: Sequence[str], problems: list[str]) -> tuple[Tree, dict[str, str]]:
    """Steps 1 to 3: (plain tree, origin of each leaf by dotted key)."""
    tree: Tree = {}
    origins: dict[str, str] = {}
    for file, layer in _files(path):
        _merge(tree, layer, os.path.normpath(file), origins)
    _merge(tree, _parse_overrides(overrides, problems), COMMAND_LINE, origins)
    return _resolve(tree, problems), origins


def config_text(config: Config) -> str:
    """Every value as YAML; `load_config` of such a file gives an equal Config."""
    # OmegaConf's writer, not PyYAML's: OmegaConf reads `1e3` as a number, so a folder of that name must be quoted.
    return str(OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))))


def save_config(config: Config, path: Path) -> None:
    """Write `config_text`."""
    path.write_text(config_text(config))


def load_saved(path: Path) -> Config:
    """Load a file written by `save_config`, without `extends:` and interpolation.

    A checkpoint may be untrusted: `extends:` or `${oc.env:…}` in it could read this machine's files and variables.
    Raises the errors of `load_config`.
    """
    problems: list[str] = []
    config = build(_read(path), problems)
    # Not the engine's options: other versions accepted more of them, and reading weights needs none.
    problems = problems or find_conflicts(config, engine=False)
    if problems:
        raise ConfigError(problems, source=str(path))
    return config


def _files(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, Tree]]:
    """The file and its ancestors, oldest first."""
    if path.resolve() in seen:
        raise ConfigError([f"{path} extends itself through {' → '.join(p.name for p in seen)}"], source=str(seen[0]))
    layer = _read(path)
    parent = layer.pop("extends", None)
    if parent is None:
        return [(path, layer)]
    if not isinstance(parent, str):
        raise ConfigError([f"extends={parent!r} is not the path of a single file"], source=str(path))
    return [*_files(path.parent / parent, (*seen, path.resolve())), (path, layer)]


def _read(path: Path) -> Tree:
    if not path.is_file():
        raise UserError(f"config file {path} does not exist", hint="see configs/ for ready-made files")
    try:
        layer = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"not valid YAML: {' '.join(str(error).split())}"], source=str(path)) from error
    if not isinstance(layer, dict):
        raise ConfigError(["the file is not a mapping `section: {key: value}`"], source=str(path))
    return {str(key): value for key, value in layer.items()}


def _parse_overrides(overrides: Sequence[str], problems: list[str]) -> Tree:
    tree: Tree = {}
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not _KEY.fullmatch(key):
            problems.append(f"argument {text!r} is not of the form key=value\n    hint: e.g. schedule.total_steps=100")
            continue
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=False)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            problems.append(f"argument {text!r} cannot be parsed: {' '.join(str(error).split())}")
            continue
        assert isinstance(parsed, dict)
        _merge(tree, {str(k): v for k, v in parsed.items()}, "", {})
    return tree


def _merge(tree: Tree, layer: Tree, origin: str, origins: dict[str, str], prefix: str = "") -> None:
    """Merge `layer` into `tree` in place, and record the origin of each leaf."""
    for key, value in layer.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            below = tree.get(key)
            tree[key] = below if isinstance(below, dict) else {}
            _merge(tree[key], value, origin, origins, f"{name}.")
        elif value is None and not prefix and isinstance(tree.get(key), dict):
            continue  # an empty section `model:` keeps the parent's values
        else:
            tree[key] = value
            origins[name] = origin


def _resolve(tree: Tree, problems: list[str]) -> Tree:
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        problems.append(f"an interpolation cannot be resolved: {' '.join(str(error).split())}")
        return {}
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
