"""Generated documents are current, and links lead to something that exists."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from pretune.api.advice import ADVICE
from pretune.api.delivery_reasons import DELIVERIES
from pretune.api.reasons import REASONS, Entry

from tools import docs


def test_generated_documents_are_current() -> None:
    assert [str(path.relative_to(docs.ROOT)) for path in docs.stale()] == [], "run `make docs`"


@pytest.mark.parametrize(
    ("heading", "reasons"), [("Of a cache", REASONS), ("Of a pod", DELIVERIES), ("Advice", ADVICE)]
)
def test_every_reason_is_explained_under_its_heading_with_what_to_do(
    heading: str, reasons: Mapping[str, Entry]
) -> None:
    part = docs.reasons().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \| ", part, re.MULTILINE) == list(reasons)
    assert all(reason.means and reason.remedy for reason in reasons.values())


def test_every_value_has_a_row_with_its_comment() -> None:
    rows = {path: what for path, _, what in docs.described()}
    assert rows["image.repository"].startswith("The operator's image")
    assert all(re.match(r"\S.*\S$", what) for what in rows.values())


def test_links_between_documents_lead_to_existing_files() -> None:
    pages = [docs.CHART_README, *(docs.ROOT / "docs").rglob("*.md")]
    assert len(pages) > 3
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (
                f"{page.relative_to(docs.ROOT)} links to {target}"
            )
