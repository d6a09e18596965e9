"""Imports between rooms follow one table. Imports inside functions and for type checkers count like all others.

A room is a package; the modules in `pretrain/` itself are rooms of their own.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.support.repository import ROOT

PACKAGES = ("pretrain", "launch", "tokenizer")
HEAVY = ("torch", "deepspeed", "transformers", "sentencepiece", "webdataset")

# room: the rooms, and the packages of others, that it may import. Ground first, roof last: a room stands below what it may
# import, so a room that is added goes behind those that it needs.
TABLE = {
    "pretrain": "",
    "tokenizer": "",
    "pretrain.errors": "",
    "pretrain.config": "pretrain.errors omegaconf yaml",
    "pretrain.run_folder": "pretrain.errors pretrain.storage",
    "pretrain.storage": "pretrain.config pretrain.errors fsspec numpy safetensors torch",
    "pretrain.failure": "pretrain.errors pretrain.run_folder pretrain.storage",
    "pretrain.report": "pretrain.errors click rich",
    "pretrain.plan": "pretrain.config",
    "pretrain.optim": "pretrain.config pretrain.errors torch",
    "pretrain.model": "pretrain.config torch",
    "tokenizer.models": "pretrain.errors gigatoken google numpy sentencepiece tokenizers",
    "pretrain.shards": "pretrain.errors pretrain.storage numpy",
    "tokenizer.corpus.readers": "pretrain.config pretrain.errors pretrain.storage pyarrow zstandard",
    "tokenizer.corpus": "pretrain.errors tokenizer.corpus.readers",
    "tokenizer.training": """pretrain.errors pretrain.report pretrain.storage tokenizer.corpus
        tokenizer.corpus.readers tokenizer.models numpy sentencepiece""",
    "tokenizer.encoding": """pretrain.errors pretrain.shards pretrain.storage tokenizer.corpus tokenizer.corpus.readers
        tokenizer.models numpy""",
    "tokenizer.encoding.foreign": """pretrain.errors pretrain.shards tokenizer.corpus
        tokenizer.corpus.readers tokenizer.models numpy sentencepiece""",
    "pretrain.distributed": """pretrain.config pretrain.errors pretrain.model pretrain.optim pretrain.plan deepspeed
        torch""",
    "pretrain.data.blocks": "pretrain.config pretrain.errors pretrain.shards pretrain.storage numpy",
    "pretrain.data": """pretrain.config pretrain.data.blocks pretrain.distributed pretrain.errors pretrain.model
        pretrain.optim pretrain.shards pretrain.storage numpy torch webdataset""",
    "pretrain.checkpoint": """pretrain.config pretrain.data pretrain.distributed pretrain.errors pretrain.model
        pretrain.run_folder pretrain.storage numpy torch""",
    "pretrain.health": """pretrain.data pretrain.distributed pretrain.errors pretrain.run_folder pretrain.storage numpy
        torch""",
    "pretrain.health.nodes": """pretrain pretrain.config pretrain.distributed pretrain.errors pretrain.health
        pretrain.plan pretrain.storage click torch""",
    "pretrain.convert.families": "pretrain.config pretrain.errors",
    "pretrain.convert.files": """pretrain.checkpoint pretrain.config pretrain.convert.families pretrain.errors
        pretrain.model pretrain.storage tokenizer.models torch""",
    "pretrain.convert.verify": """pretrain.convert.files pretrain.errors pretrain.model pretrain.storage
        tokenizer.models torch transformers""",
    "pretrain.convert.card": """pretrain.config pretrain.convert.files pretrain.convert.verify pretrain.report
        pretrain.run_folder""",
    "pretrain.convert": """pretrain.checkpoint pretrain.config pretrain.convert.card pretrain.convert.families
        pretrain.convert.files pretrain.convert.verify pretrain.errors pretrain.model pretrain.run_folder
        pretrain.storage tokenizer.models click torch transformers""",
    "pretrain.convert.gguf": """pretrain.config pretrain.convert pretrain.convert.families
        pretrain.convert.files pretrain.convert.verify pretrain.errors pretrain.model pretrain.storage
        tokenizer.models gguf llama_cpp numpy sentencepiece torch""",
    "pretrain.generation": """pretrain.config pretrain.convert pretrain.distributed pretrain.errors pretrain.model
        tokenizer.models torch""",
    "pretrain.evaluation": """pretrain.checkpoint pretrain.config pretrain.convert pretrain.convert.files
        pretrain.data pretrain.distributed pretrain.errors pretrain.generation pretrain.model pretrain.report
        pretrain.storage tokenizer.models datasets lm_eval numpy rich torch""",
    "pretrain.inspection": """pretrain.config pretrain.convert pretrain.convert.files pretrain.errors pretrain.model
        pretrain.report tokenizer.models numpy rich torch""",
    "pretrain.training.startup": """pretrain.checkpoint pretrain.config pretrain.convert pretrain.convert.families
        pretrain.convert.files pretrain.data pretrain.distributed pretrain.errors pretrain.generation
        pretrain.health pretrain.optim pretrain.run_folder pretrain.shards pretrain.storage tokenizer.models numpy""",
    "pretrain.training": """pretrain.checkpoint pretrain.config pretrain.data pretrain.distributed pretrain.errors
        pretrain.evaluation pretrain.failure pretrain.generation pretrain.health pretrain.model pretrain.optim
        pretrain.plan pretrain.report pretrain.run_folder pretrain.storage pretrain.training.startup tokenizer.models
        numpy rich torch""",
    "pretrain.train": "pretrain.training",
    "pretrain.node_check": "pretrain.health.nodes",
    "launch.slurm": "pretrain.config pretrain.errors pretrain.plan pretrain.storage omegaconf",
    "launch": """launch.slurm pretrain.config pretrain.errors pretrain.failure pretrain.plan pretrain.run_folder psutil
        torch""",
    "pretrain.cli.views": """launch pretrain.errors pretrain.report pretrain.shards tokenizer.corpus
        tokenizer.corpus.readers tokenizer.encoding tokenizer.training click rich""",
    "pretrain.cli.quickstart": """launch pretrain.config pretrain.errors pretrain.plan pretrain.report
        pretrain.run_folder pretrain.training rich""",
    "pretrain.cli": """launch launch.slurm pretrain pretrain.checkpoint pretrain.cli.quickstart pretrain.cli.views
        pretrain.config pretrain.convert pretrain.convert.gguf pretrain.data pretrain.distributed pretrain.errors
        pretrain.evaluation pretrain.generation pretrain.inspection pretrain.report pretrain.run_folder
        pretrain.shards pretrain.storage pretrain.training pretrain.training.startup tokenizer.corpus
        tokenizer.corpus.readers tokenizer.encoding tokenizer.encoding.foreign tokenizer.models tokenizer.training
        click numpy rich torch""",
    "pretrain.__main__": "pretrain.cli",
}


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
ROOMS = {module for module, path in MODULES.items() if path.name == "__init__.py"}


def room_of(module: str) -> str:
    if module in ROOMS:
        return module
    parent = module.rpartition(".")[0]
    return module if parent == "pretrain" else parent


def names_in(source: str) -> Iterator[str]:
    """Dotted names that a source imports, anywhere in it; `from package import module` gives the module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "a relative import hides where it goes"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


@cache
def imports(module: str) -> frozenset[str]:
    return frozenset(names_in(MODULES[module].read_text()))


def against_the_table(module: str, names: frozenset[str]) -> set[str]:
    """What a module imports that its room may not."""
    allowed, own = set(TABLE[room_of(module)].split()), room_of(module)
    return {
        name
        for name in names
        if (name in MODULES and room_of(name) not in {own, *allowed})
        or (name.partition(".")[0] not in {*sys.stdlib_module_names, *PACKAGES, *allowed})
    }


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Nodes that lead back to themselves; empty where there are none."""
    done: set[str] = set()

    def walk(node: str, path: tuple[str, ...]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for other in sorted(graph.get(node, ())):
                if found := walk(other, (*path, node)):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, ()))), [])


def graph_of(place_of: Callable[[str], str]) -> dict[str, set[str]]:
    """Arrows between the places of modules, without those within a place."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        targets = {place_of(name) for name in imports(module) if name in MODULES}
        graph.setdefault(place_of(module), set()).update(targets - {place_of(module)})
    return graph


def wing_of(module: str) -> str:
    """A room with the rooms inside it: `pretrain.convert` for all of `pretrain.convert.*`."""
    return ".".join(room_of(module).split(".")[:2])


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module: str) -> None:
    assert against_the_table(module, imports(module)) == set()


def test_an_import_against_the_table_is_found() -> None:
    for line in (
        "import torch",
        "from pretrain.training import trainer",
        "def f():\n    from pretrain.cli.main import main",
        "if TYPE_CHECKING:\n    from pretrain.data.source import Source",
    ):
        assert against_the_table("pretrain.config.schema", frozenset(names_in(line))), line
    assert not against_the_table("pretrain.config.schema", frozenset(names_in("import json, omegaconf")))


def test_the_table_names_each_room_once_and_nothing_that_is_gone() -> None:
    assert set(TABLE) == {room_of(module) for module in MODULES}
    graph = graph_of(room_of)
    unused = {
        room: [name for name in entry.split() if name.partition(".")[0] in PACKAGES and name not in graph[room]]
        for room, entry in TABLE.items()
    }
    assert {room: names for room, names in unused.items() if names} == {}


@pytest.mark.parametrize("place_of", [room_of, wing_of, lambda module: module], ids=["rooms", "wings", "modules"])
def test_there_is_no_cycle(place_of: Callable[[str], str]) -> None:
    assert cycle(graph_of(place_of)) == []


def test_a_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Modules in sys.modules when a program has ended."""
    program += "\nprint('\\n' + json.dumps(sorted(sys.modules)))\n"
    ended = subprocess.run(
        [sys.executable, "-c", "import json, runpy, sys\n" + program, *arguments],
        **{"cwd": ROOT, "capture_output": True, "text": True, "check": True, "timeout": 60},
    )
    return set(json.loads(ended.stdout.rstrip().rpartition("\n")[2]))


COMMAND = """
sys.argv = ['pretrain', *sys.argv[1:]]
try:
    runpy.run_module('pretrain.cli', run_name='__main__')
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["config", "show", "configs/quickstart.yaml"],
        ["launch", "slurm", "configs/models/70b.yaml", "--cluster=example", "--nodes=128", "--dry-run"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_looking_at_a_configuration_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_by(COMMAND, *arguments)
    assert "omegaconf" in loaded
    assert {name for name in loaded if name.split(".")[0] in (*HEAVY, "numpy")} == set()


@pytest.mark.parametrize(
    ("module", "also_heavy"),
    [
        ("tokenizer.corpus.task_plan", ("numpy", "pyarrow", "zstandard", "fsspec")),
        ("pretrain.data.order", ()),
        ("pretrain.data.source", ()),
        ("pretrain.shards.manifest", ()),
        ("pretrain.plan.memory", ("numpy",)),
        ("pretrain.training.startup.preflight", ()),
        # A torch that is broken on one node is found, and is not what ends the check.
        ("pretrain.health.nodes.check_nodes", ("numpy",)),
        ("launch.slurm.submit", ("numpy",)),
        ("launch.status", ("numpy",)),
    ],
)
def test_a_light_module_loads_nothing_heavy(module: str, also_heavy: tuple[str, ...]) -> None:
    loaded = loaded_by(f"import {module}")
    assert {name for name in loaded if name.split(".")[0] in (*HEAVY, *also_heavy)} == set()
