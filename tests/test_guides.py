"""Links and anchors of the guides lead somewhere, each guide begins with its contents, and the README stays short."""

from pathlib import Path

import pytest
from commands import anchors, blocks, contents, headings, links
from project_sources import REPO

GUIDES = sorted(path for path in REPO.rglob("*.md") if not path.relative_to(REPO).parts[0].startswith((".", "out")))
FRONT = REPO / "README.md"
MAX_LINES, MAX_WIDTH = 150, 325


def dead_links(path: Path, text: str) -> list[str]:
    """The links of a guide to files and anchors that are not there; web addresses are not asked."""
    found = []
    for link in links(text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        there = (
            text
            if target == path
            else target.read_text(encoding="utf-8")
            if target.suffix == ".md" and target.is_file()
            else ""
        )
        if not target.exists() or (anchor and anchor not in anchors(there)):
            found.append(link)
    return found


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_link_leads_somewhere(guide):
    assert dead_links(guide, guide.read_text(encoding="utf-8")) == []


def test_planted_dead_links_are_found():
    text = "# One\n\n## A `b`, (c)\n[a](gone.md) [b](#a-b-c) [c](#gone) [d](CONTRIBUTING.md#gone) `[e](code.md)`\n"
    assert dead_links(FRONT, text) == ["gone.md", "#gone", "CONTRIBUTING.md#gone"]
    assert anchors("# A\n# a\n```\n# code\n```\n## A\n") == ["a", "a-1", "a-2"]


@pytest.mark.parametrize(
    "guide", [path for path in GUIDES if path != FRONT], ids=lambda path: str(path.relative_to(REPO))
)
def test_a_guide_with_sections_begins_with_its_contents(guide):
    text = guide.read_text(encoding="utf-8")
    sections = [title for level, title in headings(text) if level == 2]
    where = [anchor for (level, _), anchor in zip(headings(text), anchors(text), strict=True) if level == 2]
    assert [level for level, _ in headings(text)].count(1) == 1
    if sections:
        assert contents(text) == [f"- [{title}](#{anchor})" for title, anchor in zip(sections, where, strict=True)]


def test_the_readme_is_short_and_leads_to_every_guide():
    text = FRONT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert max(map(len, text.splitlines())) <= MAX_WIDTH
    reached, new = set(), {FRONT}
    while new:
        reached |= new
        named = {
            (path.parent / link.partition("#")[0]).resolve()
            for path in new
            for link in links(path.read_text(encoding="utf-8"))
        }
        new = {path for path in named if path.suffix == ".md" and path.is_file()} - reached
    assert {path for path in GUIDES if path not in reached and path.parent.name != "goldens"} == set()


def test_the_two_commands_are_single_lines():
    lines = [line for _, script in blocks(FRONT.read_text(encoding="utf-8"), "bash") for line in script.splitlines()]
    assert [line.rpartition(" && ")[2] for line in lines] == [
        ".venv/bin/python run.py quickstart",
        ".venv/bin/python -m pytest",
    ]
