"""Imports go one way: read from the sources, those inside functions included, those for type checkers not."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.repository import ROOT

PACKAGES = ("pretrain", "launch", "tokenizer")
HEAVY = ("torch", "deepspeed", "transformers", "sentencepiece", "webdataset")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def statements(tree: ast.AST, *, deep: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements outside `if TYPE_CHECKING:`; those inside functions only if `deep`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from statements(other, deep=deep)
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(node, deep=deep)


@cache
def imports(module: str, *, deep: bool = True) -> frozenset[str]:
    """Dotted names that a module imports; `from package import module` is resolved to the module."""
    found: set[str] = set()
    for node in statements(ast.parse(MODULES[module].read_text()), deep=deep):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"{module}: a relative import hides where it goes"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            found.add(inner if inner in MODULES else str(node.module))
    return frozenset(found)


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def outside(module: str, allowed: tuple[str, ...]) -> set[str]:
    """What a module imports beyond the standard library and `allowed`."""
    return {
        name
        for name in imports(module)
        if name.split(".")[0] not in sys.stdlib_module_names and not any(within(name, a) for a in allowed)
    }


def modules(*patterns: str) -> list[str]:
    """Modules of these names; `package.*` stands for the package and everything in it."""
    found = [m for p in patterns for m in MODULES if (within(m, p[:-2]) if p.endswith(".*") else m == p)]
    assert found, patterns
    return found


PURE = ("pretrain.errors", "pretrain.optim.schedule", "pretrain.plan.counts", "pretrain.plan.memory", "pretrain.config")


@pytest.mark.parametrize(
    "module",
    modules(
        "pretrain.errors",
        "pretrain.optim.schedule",
        "pretrain.plan.counts",
        "pretrain.plan.memory",
        "pretrain.config.*",
    ),
)
def test_planning_on_a_login_node_needs_only_omegaconf(module: str) -> None:
    assert outside(module, ("omegaconf", "yaml", *PURE)) == set()


@pytest.mark.parametrize(
    "module",
    [
        f"pretrain.data.{name}"
        for name in (
            "shards",
            "manifest",
            "manifest_rules",
            "shard_table",
            "order",
            "permute",
            "mixture",
            "source",
            "blocks",
            "memory",
        )
    ],
)
def test_the_order_and_the_shards_need_numpy_at_most(module: str) -> None:
    assert outside(module, ("numpy", "pretrain.config", "pretrain.errors", "pretrain.data")) == set()
    assert not any(within(name, "pretrain.data.loader") for name in imports(module))  # which imports torch


@pytest.mark.parametrize("module", modules("pretrain.model.*", "pretrain.model.loss"))
def test_the_model_sees_torch_and_its_own_section_only(module: str) -> None:
    assert outside(module, ("torch", "pretrain.config", "pretrain.model.loss", "pretrain.model")) == set()
    assert not any(within(name, "torch.distributed") for name in imports(module))


def test_only_the_engine_imports_deepspeed() -> None:
    users = {module for module in MODULES for name in imports(module) if within(name, "deepspeed")}
    # doctor reports which version is installed.
    assert users - {"pretrain.cli.doctor"} == {"pretrain.distributed.engine"}


@pytest.mark.parametrize("module", modules("pretrain.convert.*"))
def test_converting_needs_no_process_group(module: str) -> None:
    forbidden = (
        "deepspeed",
        "torch.distributed",
        "pretrain.distributed.collectives",
        "pretrain.distributed.engine",
        "pretrain.training.trainer",
    )
    assert {name for name in imports(module) if any(within(name, f) for f in forbidden)} == set()


@pytest.mark.parametrize("module", modules("tokenizer.*"))
def test_the_tokenizer_sees_little_of_the_trainer_and_never_torch(module: str) -> None:
    allowed = ("errors", "config", "planning", "codec", "charts", "data.shards", "data.shard_table", "data.manifest")
    if module in (
        "tokenizer.training.inspect_hf",
        "pretrain.cli.cmd_tokenizer",
        "tokenizer.models.fast",
        "tokenizer.models.splitting_json",
    ):
        allowed += ("codec_json", "codec_losses")
    if module == "tokenizer.corpus.readers.open_file":  # a corpus and its shards lie in the same stores
        allowed += ("data.store", "data.retries")
    seen = {name for name in imports(module) if within(name, "pretrain")}
    assert {name for name in seen if not any(within(name, f"pretrain.{a}") for a in allowed)} == set()
    assert not any(within(name, heavy) for name in imports(module) for heavy in ("torch", "deepspeed", "launch"))


@pytest.mark.parametrize("module", modules("launch.*"))
def test_the_launcher_needs_no_torch(module: str) -> None:
    allowed = ("config", "errors", "planning", "memory_plan", "processes", "state", "reporting")
    # The commands look into data and checkpoints before they start anything, where numpy is installed.
    commands = ("pretrain.training.startup.preflight", "click") if module == "pretrain.cli.cmd_launch" else ()
    assert (
        outside(module, (*(f"pretrain.{name}" for name in allowed), *commands, "launch", "omegaconf", "rich")) == set()
    )


def test_charts_are_strings_and_need_nothing() -> None:
    assert outside("pretrain.report.charts", ()) == set()


@pytest.mark.parametrize("module", ["pretrain.health.nodes.node_report", "pretrain.health.nodes.compare"])
def test_a_node_says_what_is_wrong_with_it_without_torch(module: str) -> None:
    assert outside(module, ("pretrain", "pretrain.errors", "pretrain.health.nodes.node_report")) == set()


def test_nodes_are_compared_before_torch_is_imported() -> None:
    """An installation of torch that is broken on one node is found, and not what ends the check."""
    light = imports("pretrain.health.nodes.check_nodes", deep=False)
    assert "pretrain.health.nodes.network" not in light and not any(
        within(name, heavy) for name in light for heavy in HEAVY
    )


def test_only_the_command_line_joins_the_packages() -> None:
    joined = {
        module
        for module in modules("pretrain.*")
        for name in imports(module)
        if within(name, "launch") or within(name, "tokenizer")
    }
    # quickstart runs what a person would run by hand.
    assert joined - {"pretrain.cli.quickstart.walk"} == {"pretrain.cli.main"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {name for name in imports(module, deep=False) if name in MODULES} for module in MODULES}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module] - {module.rpartition(".")[0]}):
                walk(name, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize(
    "module", modules("tokenizer.corpus.task_plan", "tokenizer.corpus.listing", "tokenizer.corpus.readers.*")
)
def test_reading_a_corpus_needs_no_tokenizer(module: str) -> None:
    readers = ("corpus", "listing", "readers", "rejections", "tar_members")
    seen = {name for name in imports(module) if within(name, "tokenizer")}
    assert {name for name in seen if not any(within(name, f"tokenizer.{r}") for r in readers)} == set()
    # Whoever reads no parquet needs no pyarrow.
    at_import = imports(module, deep=False)
    assert not any(within(name, heavy) for name in at_import for heavy in ("pyarrow", "zstandard", "fsspec"))


def test_planning_a_corpus_loads_nothing_heavy() -> None:
    program = "import json, sys; import tokenizer.corpus.task_plan; print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    heavy = (*HEAVY, "pyarrow", "zstandard", "fsspec")
    assert {name for name in json.loads(ended.stdout) if name.split(".")[0] in heavy} == set()


def loaded_by(*arguments: str) -> set[str]:
    """Modules in sys.modules when a `pretrain` command has ended."""
    program = (
        "import json, runpy, sys\n"
        "sys.argv = ['pretrain', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('pretrain.cli', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    shown, _, names = ended.stdout.rstrip().rpartition("\n")
    assert shown.strip()
    return set(json.loads(names))


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
    loaded = loaded_by(*arguments)
    assert "omegaconf" in loaded
    assert {name for name in loaded if name.split(".")[0] in (*HEAVY, "numpy")} == set()
