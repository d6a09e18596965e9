"""The documentation against the tree: relative links, the index of modules, the tour's map and spine."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.module_index import module_index
from tests.support.repository import ROOT
from tests.unit.test_imports import TABLE, wing_of

PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]
TOUR = ROOT / "docs" / "tour.md"


def links(text: str) -> Iterator[str]:
    """Targets of Markdown links and images outside code, without addresses that leave this tree."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    # Inline code is dropped, unless it is the text of a link: [`name`](target).
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


def section(page: Path, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} has no section {heading!r}"
    return found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#b) [`c`](c.md) `[d](d.md)` [e](https://e)\n```\n[f](f.md)\n```\n")
    assert broken_links(page) == ["#b", "c.md"]


def test_the_index_of_modules_is_up_to_date() -> None:
    assert (ROOT / "docs" / "modules.md").read_text() == module_index(), (
        "docs/modules.md is stale; hint: make reference"
    )


def test_the_spine_has_the_stated_number_of_files_and_lines() -> None:
    text = section(TOUR, "The spine")
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    files = [(TOUR.parent / target).resolve() for target in links(table)]
    assert len(files) == len(set(files))
    stated = re.search(r"^(\d+) files, ([\d,]+) lines", text, flags=re.MULTILINE)
    assert stated
    assert int(stated[1]) == pytest.approx(len(files), rel=0.1)
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert int(stated[2].replace(",", "")) == pytest.approx(lines, rel=0.1)


def test_the_readme_states_the_size_of_the_spine_as_the_tour_does() -> None:
    size = re.search(r"^\d+ files, [\d,]+ lines", section(TOUR, "The spine"), flags=re.MULTILINE)
    assert size
    assert size[0] in (ROOT / "README.md").read_text()


def test_each_arrow_of_the_map_is_an_import_that_the_table_allows() -> None:
    lines = section(TOUR, "Map").splitlines()
    label: dict[str, str] = {}
    for name, room in re.findall(r'(\w+)\["([\w.]+)"\]', "\n".join(lines)):
        label[name] = room
    arrows = {
        (label[found[1]], label[found[2]])
        for line in lines
        if (found := re.match(r'\s+(\w+)(?:\[".*?"\])? --> (\w+)', line))
    }
    allowed = {
        (wing_of(room), wing_of(other)) for room, entry in TABLE.items() for other in entry.split() if other in TABLE
    }
    assert len(arrows) > 20
    assert arrows - allowed == set()


def test_the_tour_names_every_room() -> None:
    named = set(re.findall(r"^\| `([\w.]+)` \|", section(TOUR, "Rooms"), flags=re.MULTILINE))
    files = {room for room in TABLE if (ROOT / f"{room.replace('.', '/')}.py").is_file()}
    packages = {wing_of(room) for room in TABLE if room not in files} - {"pretrain", "tokenizer", "launch.slurm"}
    assert named - files == packages
