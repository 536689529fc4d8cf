"""The guides agree with the code: causes of a release, the commands that release pods, links."""

from __future__ import annotations

import re
from pathlib import Path

from pretune.policy.hold.release import CHECKS

from tools.docs import ROOT

LINES = re.compile(r"kubectl get pods --all-namespaces.*?\bdone\b", re.DOTALL)


def test_every_cause_of_a_release_is_explained_in_the_order_of_the_rules() -> None:
    text = (
        (ROOT / "docs/holding.md")
        .read_text()
        .partition("\n## When it is released\n")[2]
        .partition("\n## ")[0]
    )
    rows = re.findall(r"^\| (\w+) \| .* \| (released|waits on) \|$", text, re.MULTILINE)
    assert rows == [(cause, "waits on" if failure else "released") for cause, failure, _ in CHECKS]


def test_the_commands_that_release_held_pods_are_the_same_in_every_document() -> None:
    found = {
        page: [_plain(command) for command in LINES.findall((ROOT / page).read_text())]
        for page in ("README.md", "docs/operations.md", "charts/pretune/README.md")
    }
    assert found["README.md"] == found["docs/operations.md"] == found["charts/pretune/README.md"]
    assert len(found["README.md"]) == 1


def test_links_of_the_readme_lead_to_existing_files() -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), f"README.md links to {target}"


def test_anchors_of_links_between_guides_are_headings() -> None:
    for page in [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "charts/pretune/README.md",
    ]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", page.read_text()):
            there = (page.parent / target) if target else page
            assert anchor in _anchors(there), f"{page.relative_to(ROOT)} links to {target}#{anchor}"


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub generates for the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in heads}


def _plain(text: str) -> str:
    return " ".join(text.split())
