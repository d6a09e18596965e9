"""From a plain tree to the dataclasses of schema.py: checks names, types and ranges of single values."""

import dataclasses
import difflib
import math
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from pretrain.config.schema import Config

TYPE_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def build(tree: dict[str, Any], problems: list[str]) -> Config:
    """Build the Config of a tree. Invalid entries are added to `problems` and get their defaults."""
    config = build_section(Config, tree, "", problems)
    assert isinstance(config, Config)
    return config


def known_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """All dotted keys, e.g. `model.n_layers`; keys of a source appear as `data.train.NAME.path`."""
    names: list[str] = []
    for name, kind in get_type_hints(cls).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            names += known_keys(kind, f"{prefix}{name}.")
        elif (named := named_section(kind)) is not None:
            names += known_keys(named, f"{prefix}{name}.NAME.")
        else:
            names.append(f"{prefix}{name}")
    return names


def build_section(cls: type, tree: Any, prefix: str, problems: list[str], root: type = Config) -> Any:
    """Build a dataclass of knobs from its part of a tree; `root` is where similar names are searched for."""
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        first = dataclasses.fields(cls)[0].name
        problems.append(f"{prefix.rstrip('.')}={tree!r} is not a section\n    hint: {prefix}{first}=…")
        return cls()
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in fields:
            problems.append(_unknown(name, prefix, list(fields), root))
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = build_section(hints[key], value, f"{name}.", problems, root)
        elif (named := named_section(hints[key])) is not None:
            values[key] = _named_sections(named, value, name, problems, root)
        else:
            accepted = _leaf(value, hints[key], name, fields[key].metadata, problems)
            if accepted is not dataclasses.MISSING:
                values[key] = accepted
    return cls(**values)


def _named_sections(cls: type, tree: Any, name: str, problems: list[str], root: type) -> dict[str, Any]:
    if tree is None:  # `data.valid=null` removes the sources of the file
        return {}
    if not isinstance(tree, dict):
        first = dataclasses.fields(cls)[0].name
        problems.append(f"{name}={tree!r} is not a set of named sections\n    hint: {name}.NAME.{first}=…")
        return {}
    _refuse_words(tree, name, problems)
    return {str(key): build_section(cls, value, f"{name}.{key}.", problems, root) for key, value in tree.items()}


def _refuse_words(tree: dict[Any, Any], name: str, problems: list[str]) -> None:
    """Add a problem for each name that YAML 1.1 reads as a truth value."""
    problems += [
        f"{name} has a name that YAML reads as {str(key).lower()}: no, off, on and yes need quotes\n"
        f"    hint: in quotes, such as '{'yes' if key else 'no'}'"
        for key in tree
        if isinstance(key, bool)
    ]


def _leaf(value: Any, kind: Any, name: str, rules: Any, problems: list[str]) -> Any:
    """Return the value in its declared type, or add a problem and return MISSING."""
    optional = get_origin(kind) in (Union, types.UnionType)
    if optional:
        if value is None:
            return None
        kind = next(arg for arg in get_args(kind) if arg is not type(None))
    if get_origin(kind) is dict:
        if isinstance(value, dict):
            return _numbers(value, name, problems) if get_args(kind)[1] is float else value
        problems.append(f"{name}={value!r} is not a mapping")
        return dataclasses.MISSING
    if get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        problems.append(f"{name}={value!r} is not a list of strings")
        return dataclasses.MISSING
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        problems.append(f"{name}={value!r} is not {TYPE_NAMES[kind]}")
        return dataclasses.MISSING
    broken = _range_problem(value, rules)
    if broken:
        problems.append(f"{name}={value!r} {broken}")
        return dataclasses.MISSING
    return value


def _numbers(tree: dict[Any, Any], name: str, problems: list[str]) -> dict[str, float]:
    """A mapping of names to non-negative numbers."""
    _refuse_words(tree, name, problems)
    rules = {"choices": (), "minimum": 0, "above": None, "maximum": None, "below": None}
    leaves = {str(key): _leaf(value, float, f"{name}.{key}", rules, problems) for key, value in tree.items()}
    return {key: value for key, value in leaves.items() if value is not dataclasses.MISSING}


def _range_problem(value: Any, rules: Any) -> str:
    if rules["choices"] and value not in rules["choices"]:
        near = difflib.get_close_matches(str(value), rules["choices"], n=1)
        hint = f"\n    hint: did you mean {near[0]}?" if near else ""
        return f"is not one of {', '.join(rules['choices'])}{hint}"
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if rules["minimum"] is not None and value < rules["minimum"]:
        return f"is below {rules['minimum']}"
    if rules["above"] is not None and value <= rules["above"]:
        return f"is not above {rules['above']}"
    if rules["maximum"] is not None and value > rules["maximum"]:
        return f"is above {rules['maximum']}"
    if rules["below"] is not None and value >= rules["below"]:
        return f"is not below {rules['below']}"
    return ""


def _unknown(name: str, prefix: str, siblings: list[str], root: type) -> str:
    """Suggest a similar name, first among the siblings, then anywhere: `lr` at top level is `optimizer.lr`."""
    last = name.rsplit(".", 1)[-1]
    near = [f"{prefix}{match}" for match in difflib.get_close_matches(last, siblings, n=1)]
    near += [known for known in known_keys(root) if known.rsplit(".", 1)[-1] == last]
    near += difflib.get_close_matches(name, known_keys(root), n=1)
    listing = "`pretrain config show CONFIG` lists" if root is Config else "configs/cluster/example.yaml has"
    hint = f"did you mean {near[0]}?" if near else f"{listing} every key"
    return f"{name} is not a known key\n    hint: {hint}"


def named_section(kind: Any) -> type | None:
    """The dataclass of a `dict[str, dataclass]` (its keys are user-chosen names), else None."""
    if get_origin(kind) is dict and dataclasses.is_dataclass(get_args(kind)[1]):
        found: type = get_args(kind)[1]
        return found
    return None
