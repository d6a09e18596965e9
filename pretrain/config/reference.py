"""Generator of docs/reference/config.md from schema.py: `python -m pretrain.config.reference` prints the page.

`make reference` writes the file; a test fails if the file is stale.
"""

import dataclasses
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from pretrain.config.build import named_section
from pretrain.config.deepspeed_options import DERIVED_OPTIONS, PASSED_OPTIONS, REFUSED_OPTIONS
from pretrain.config.schema import Config

HEADER = """\
# Configuration

Generated from `pretrain/config/schema.py` by `make reference`; do not edit. Precedence, lowest first: these defaults, the
YAML file (after the file it `extends:`), `key=value` on the command line. `pretrain config show CONFIG` prints the result
with the origin of each value. Rules between values are in `pretrain/config/check.py`.
"""
TYPE_NAMES = {int: "integer", float: "number", str: "string", bool: "true or false"}
SIGNS = {"minimum": "≥", "above": ">", "maximum": "≤", "below": "<"}


def reference() -> str:
    """The complete page; deterministic."""
    sections = [_section(kind, name) for name, kind in get_type_hints(Config).items()]
    return "\n".join([HEADER, *sections, _deepspeed()])


def _section(cls: type, prefix: str) -> str:
    """Heading, docstring and table of a section, then its nested sections."""
    hints = get_type_hints(cls)
    lines = [f"## {prefix}", "", " ".join((cls.__doc__ or "").split()), ""]
    lines += ["| key | type | default | rule | meaning |", "|---|---|---|---|---|"]
    below = [""]
    for field in dataclasses.fields(cls):
        kind, name = hints[field.name], f"{prefix}.{field.name}"
        named = named_section(kind)
        if dataclasses.is_dataclass(kind) or named is not None:
            below.append(_section(named or kind, f"{name}.NAME" if named else name))
        if dataclasses.is_dataclass(kind):
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        cells = [f"`{name}`", _type(kind), f"`{_yaml(default)}`"]
        cells += [_rule(field.metadata), field.metadata["help"]]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, *below])


def _type(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else TYPE_NAMES[part] for part in get_args(kind))
    if get_origin(kind) is dict:
        return "sections by name" if named_section(kind) else "mapping"
    return "list of strings" if get_origin(kind) is tuple else TYPE_NAMES[kind]


def _rule(metadata: Any) -> str:
    """Choices, or a range such as `≥ 0, ≤ 1`; empty if any value of the type is allowed."""
    limits = {name: limit for name, limit in metadata.items() if name not in ("help", "choices")}
    ranges = (f"{SIGNS[name]} {limit}" for name, limit in limits.items() if limit is not None)
    return ", ".join([*(f"`{choice}`" for choice in metadata["choices"]), *ranges])


def _yaml(value: Any) -> str:
    """A default in YAML."""
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("...\n").strip()


def _deepspeed() -> str:
    derived = [f"- `{name}`: from {owner}" for name, owner in sorted(DERIVED_OPTIONS.items())]
    refused = [f"- `{name}`: {reason}" for name, reason in sorted(REFUSED_OPTIONS.items())]
    passed = [f"- `{name}`" for name in sorted(PASSED_OPTIONS)]
    lines = [
        "## Options of `engine.deepspeed`",
        "",
        "Rejected, because they are derived from other keys:",
        "",
        *derived,
    ]
    lines += ["", "Rejected, because they cannot work here:", "", *refused]
    return "\n".join([*lines, "", "Passed through unchanged (see DeepSpeed's documentation):", "", *passed])


if __name__ == "__main__":
    print(reference())
