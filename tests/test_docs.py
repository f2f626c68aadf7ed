"""The documentation: links lead somewhere, code is code, every public name is in the reference, Sphinx is content."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import ipca_sklearn
from ipca_sklearn._utils._tables import COLUMNS

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


def test_the_guide_has_the_table_of_columns() -> None:
    tables = {
        "predict": "`predict`",
        "watch": "`watch`",
        "products": "`predict` with several products",
        "align": "`predict` with `--align`",
    }
    rows = [
        f"| `{column.name}` | {column.meaning} | {', '.join(map(tables.get, column.tables))} | {column.computed_in} |"
        for column in COLUMNS
    ]
    assert "\n".join(rows) + "\n\n" in (ROOT / "docs" / "guide_tasks.md").read_text(encoding="utf-8")


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


@pytest.fixture(scope="module")
def built_pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The pages, and what Sphinx said."""
    pytest.importorskip("sphinx_gallery", reason="Sphinx is not installed: pip install '.[docs]'")
    # Running the examples takes a minute: that is for whoever publishes the pages.
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-D", "plot_gallery=0", "-b", "html"]
    place = tmp_path_factory.mktemp("pages")
    source = place / "docs"  # a copy: Sphinx and the gallery write beside the sources
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("_build", "generated", "auto_examples"))
    done = subprocess.run([*command, str(source), str(place / "html")], capture_output=True, text=True, timeout=300)
    return place / "html", done


def test_sphinx_makes_the_pages_without_a_warning(built_pages) -> None:
    pages, done = built_pages
    assert done.returncode == 0, done.stderr
    assert (pages / "generated" / "ipca_sklearn.PatchGaussianDetector.html").exists()


def public_members(cls: type) -> dict[str, Any]:
    """Return the methods and properties of a class that have no underscore, without those of Python's own classes."""
    found = {}
    for name in dir(cls):
        owner = next(base for base in cls.__mro__ if name in vars(base))
        if name.startswith("_") or owner.__module__ == "builtins":
            continue
        value = getattr(cls, name)
        if callable(value) or isinstance(value, property | cached_property):
            found[name] = value
    return found


def is_internal(member: Any) -> bool:
    """Whether a docstring says that a name without an underscore is for other rooms of the package only."""
    return ":meta private:" in (inspect.getdoc(member) or "")


def test_every_public_method_and_property_has_an_entry_and_no_internal_one_has(built_pages) -> None:
    """Inherited ones too, as in scikit-learn's own reference."""
    pages, _ = built_pages
    inventory = zlib.decompress((pages / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    listed = {line.split(" py:")[0] for line in inventory.splitlines() if re.search(r" py:(method|property) ", line)}
    wanted: set[str] = set()
    for room, name in reference():
        value = getattr(importlib.import_module(room), name)
        if isinstance(value, type):
            members = public_members(value)
            wanted |= {f"{room}.{name}.{member}" for member, of in members.items() if not is_internal(of)}
    assert wanted >= {
        f"ipca_sklearn.PatchGaussianDetector.{name}"
        for name in ("fit", "predict", "score_samples", "offset_", "get_params", "set_output", "fit_transform")
    }
    assert listed == wanted


def undocumented_types(member: Any) -> list[str]:
    """Return the classes of the package in the annotations of a method that the reference does not have."""
    if isinstance(member, property | cached_property):
        member = member.fget if isinstance(member, property) else member.func
    function = inspect.unwrap(getattr(member, "__func__", member))
    known = [getattr(importlib.import_module(room), name) for room, name in reference()]
    annotations = " ".join(map(str, getattr(function, "__annotations__", {}).values()))
    values = [getattr(function, "__globals__", {}).get(word) for word in re.findall(r"\w+", annotations)]
    ours = [value for value in values if isinstance(value, type) and value.__module__.startswith("ipca_sklearn")]
    return [value.__name__ for value in ours if value not in known]


def test_what_a_listed_method_takes_and_returns_is_in_the_reference_too() -> None:
    """Else it is internal: `:meta private:` in its docstring."""
    found = {}
    for room, name in reference():
        value = getattr(importlib.import_module(room), name)
        for member, of in public_members(value).items() if isinstance(value, type) else ():
            types = undocumented_types(of)
            if types and not is_internal(of):
                found[f"{room}.{name}.{member}"] = types
    assert found == {}
    internal = public_members(importlib.import_module("ipca_sklearn.inspection").HtmlReport)["read_encoded"]
    assert undocumented_types(internal) == ["EncodedImage"]
