"""What is generated is current, and what is written by hand names only what is there."""

from __future__ import annotations

import re

from pretune.reasons import REASONS

from tools import docs


def test_generated_documents_are_current() -> None:
    assert [str(path.relative_to(docs.ROOT)) for path in docs.stale()] == [], "run `make docs`"


def test_every_reason_is_explained_with_what_to_do() -> None:
    text = docs.reasons()
    for name, reason in REASONS.items():
        assert f"| `{name}` | " in text
        assert reason.means and reason.remedy


def test_every_value_has_a_row_with_its_comment() -> None:
    rows = {path: what for path, _, what in docs.described()}
    assert rows["image.repository"].startswith("The operator's image")
    assert all(re.match(r"\S.*\S$", what) for what in rows.values())


def test_links_between_documents_lead_somewhere() -> None:
    pages = [docs.CHART_README, *(docs.ROOT / "docs").rglob("*.md")]
    assert len(pages) > 3
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(docs.ROOT)} links to {target}"
