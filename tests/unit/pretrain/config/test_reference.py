"""The documentation against the tree: the configuration reference, the tour, and every relative link."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.config.build import known_keys
from pretrain.config.reference import reference
from tests.support.repository import ROOT

DOCS = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
PAGES = [page for page in DOCS if page.is_file()]
TOUR = ROOT / "docs" / "tour.md"
# A package whose __init__.py holds no code beside its docstring is described by its modules.
MODULES = sorted(
    str(path.relative_to(ROOT))
    for package in ("pretrain", "launch", "tokenizer")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py" or "=" in path.read_text()
)


def links(text: str) -> Iterator[str]:
    """Targets of Markdown links and images outside code, without what leads off this tree."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    # Code in a line goes, unless it is the text of a link: [`file.py`](file.py).
    prose = re.sub(r"\[`[^`]*`\]|`[^`\n]*`", lambda found: found[0] if found[0].startswith("[") else "", prose)
    for target in re.findall(r"\]\(([^()\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links(page.read_text()):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path.read_text())):
            broken.append(link)
    return broken


def test_the_reference_of_the_configuration_is_up_to_date() -> None:
    written = (ROOT / "docs" / "reference" / "config.md").read_text()
    assert written == reference() + "\n", "docs/reference/config.md is stale; hint: make reference"


def test_the_reference_names_every_key_once() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", reference(), flags=re.MULTILINE)
    expected = {
        key.replace("data.train.NAME", f"data.{part}.NAME") for key in known_keys() for part in ("train", "valid")
    }
    assert set(rows) == expected | {"data.train", "data.valid", "data.stages"}
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#b) [`c`](c.md) `[d](d.md)` [e](https://e)\n```\n[f](f.md)\n```\n")
    assert broken_links(page) == ["#b", "c.md"]
