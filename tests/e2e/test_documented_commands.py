"""Every command that the README and the guides show is run, in the order in which it stands."""

import re
from pathlib import Path

import pytest

from tests.e2e.conftest import run_in
from tests.support.repository import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs/guides").glob("*.md"))]
# This test runs under `make test`, in the environment that these made.
MAKING = re.compile(r"make (?P<target>[\w-]+)|python3 -m venv .*|pretrain quickstart")

# `pretrain train`, `pretrain launch local`, …: each kind starts a Python of its own once, and is forked from then on.
KIND = re.compile(r"\b(?:pretrain|python -m)(?: [a-z][\w.]*){1,2}")
STARTED_COLD = {"pretrain tokenizer train", "pretrain tokenizer encode", "pretrain launch local"}  # by the quickstart


def commands(document: Path) -> list[str]:
    """Lines that begin with `$ ` in blocks marked `console`; a backslash at the end joins the next line."""
    blocks = re.findall(r"```console\n(.*?)```", document.read_text(), flags=re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_of_a_document_run(document: Path, workplace: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = commands(document)
    assert shown
    for command in shown:
        making = MAKING.fullmatch(command)
        if making is not None:
            assert making["target"] is None or f"\n{making['target']}:" in makefile
            continue
        kinds = set(KIND.findall(command))
        done = run_in(workplace, command, cold=not kinds <= STARTED_COLD)
        STARTED_COLD.update(kinds)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"$ {command}\n{done.stderr}"
