"""The guides agree with the code: causes of a release, the commands that release pods, links."""

from __future__ import annotations

import re
from pathlib import Path

from pretune.policy.hold.release import RELEASE_RULES

from tools.docs import ROOT

PACKAGE = ROOT / "operator/pretune"
# A path with a folder in it, and what it defines. Paths in vLLM's wheel are of another package.
NAMED = re.compile(r"`((?!vllm/|flashinfer/)[\w.-]+/[\w./-]+\.py)(?:::(\w+))?`")
LINES = re.compile(r"kubectl get pods --all-namespaces.*?\bdone\b", re.DOTALL)


def test_every_cause_of_a_release_is_explained_in_the_order_of_the_rules() -> None:
    text = (
        (ROOT / "docs/holding.md")
        .read_text()
        .partition("\n## When it is released\n")[2]
        .partition("\n## ")[0]
    )
    rows = re.findall(r"^\| (\w+) \| .* \| (released|stays held) \|$", text, re.MULTILINE)
    assert rows == [
        (rule.cause, "stays held" if rule.after_failure else "released") for rule in RELEASE_RULES
    ]


def test_the_commands_that_release_held_pods_are_the_same_in_every_document() -> None:
    found = {
        page: [_plain(command) for command in LINES.findall((ROOT / page).read_text())]
        for page in ("README.md", "docs/operations.md", "charts/pretune/README.md")
    }
    assert found["README.md"] == found["docs/operations.md"] == found["charts/pretune/README.md"]
    assert len(found["README.md"]) == 1


def test_links_of_the_other_documents_lead_to_existing_files() -> None:
    """Of those outside docs/, which tests/chart/test_docs.py reads."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "tests").rglob("README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_anchors_of_links_between_guides_are_headings() -> None:
    for page in [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "charts/pretune/README.md",
    ]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", page.read_text()):
            there = (page.parent / target) if target else page
            assert anchor in _anchors(there), f"{page.relative_to(ROOT)} links to {target}#{anchor}"


def test_code_that_the_developers_documents_name_exists() -> None:
    """`policy/decide.py`, below operator/pretune or the root, and `policy/decide.py::decide`."""
    pages = [*(ROOT / "docs/dev").glob("*.md"), *(ROOT / "docs/decisions").glob("*.md")]
    pages += [
        ROOT / "docs/security.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "tests/README.md",
        ROOT / "tests/sim/README.md",
    ]
    missing = [
        f"{page.relative_to(ROOT)}: {path} {name}"
        for page in pages
        for path, name in NAMED.findall(page.read_text())
        if not any(_defines(folder / path, name) for folder in (ROOT, PACKAGE, ROOT / "tests"))
    ]
    assert missing == []


def _defines(file: Path, name: str) -> bool:
    """Return whether the file exists, and defines the function, class or constant of that name."""
    definition = rf"^\s*((async )?def|class) {name}\b|^{name}\b"
    return file.exists() and (
        not name or bool(re.search(definition, file.read_text(), re.MULTILINE))
    )


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub generates for the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in heads}


def _plain(text: str) -> str:
    return " ".join(text.split())
