"""The documentation: links lead somewhere, code is code, every public name is in the reference, Sphinx is content."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ipca_sklearn

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = ("*.md", "benchmarks/*.md", "docs/*.md", "docs/benchmarks/*.md")
PAGES = sorted(page for pattern in PATTERNS for page in ROOT.glob(pattern))
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("plot_*.py"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target) or target.startswith("auto_examples/"):  # the gallery is made by Sphinx
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_compiles(page: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        compile(code, str(page), "exec")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_compiles_and_has_a_title(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    compile(text, str(example), "exec")
    assert re.match(r'"""\n.+\n=+\n', text)


def public_modules() -> list[str]:
    """The top level first: the rooms below it hold some of the same objects."""
    names = [module.name for module in pkgutil.iter_modules(ipca_sklearn.__path__) if not module.name.startswith("_")]
    return ["ipca_sklearn", *(f"ipca_sklearn.{name}" for name in names if name != "cli")]  # it has a section of its own


def reference() -> list[tuple[str, str]]:
    """Return the module and the name of each entry of the reference."""
    entries: list[tuple[str, str]] = []
    current = ""
    for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(".. currentmodule:: "):
            current = line.rpartition(" ")[2]
        elif entry := re.fullmatch(r"(?:   |\.\. data:: )(\w+)", line):
            entries.append((current, entry[1]))
    return entries


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_in_the_reference(module: str) -> None:
    """Once: what two modules show may stand under either."""
    documented = [getattr(importlib.import_module(room), name, None) for room, name in reference()]
    room = importlib.import_module(module)
    public = [name for name in room.__all__ if name != "__version__"]
    missing = [name for name in public if not any(getattr(room, name) is value for value in documented)]
    assert missing == []


def test_the_reference_holds_every_name_once_and_public_names_only() -> None:
    entries = reference()
    assert [entry for entry in entries if entry[1] not in importlib.import_module(entry[0]).__all__] == []
    assert {room for room, _ in entries} <= set(public_modules())
    objects = [getattr(importlib.import_module(room), name) for room, name in entries]
    assert len({id(value) for value in objects}) == len(entries)


def test_sphinx_makes_the_pages_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx_gallery", reason="Sphinx is not installed: pip install '.[docs]'")
    # Running the examples takes a minute: that is for whoever publishes the pages.
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-D", "plot_gallery=0", "-b", "html"]
    source = tmp_path / "docs"  # a copy: Sphinx and the gallery write beside the sources
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("_build", "generated", "auto_examples"))
    done = subprocess.run([*command, str(source), str(tmp_path / "html")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "generated" / "ipca_sklearn.PatchGaussianDetector.html").exists()
