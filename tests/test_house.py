"""The order of rooms, what a room may read of another, and the files for people who pick this up."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grimp
import pytest
import yaml

from ipca_sklearn.cli._parser import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ipca_sklearn"

# Imports of our own modules in function bodies: (module, what it imports), and why.
LATE_IMPORTS = {
    ("ipca_sklearn.__main__", "ipca_sklearn.cli"): "typer is optional, and its absence gets a message",
    ("ipca_sklearn.features._grid", "ipca_sklearn.features._numba_grid"): "numba is optional",
    ("ipca_sklearn.linalg._distances", "ipca_sklearn.linalg._numba_distances"): "numba is optional",
    ("ipca_sklearn.linalg.eigh._choice", "ipca_sklearn.linalg.eigh._bisection"): "numba is optional",
    ("ipca_sklearn.linalg.eigh._choice", "ipca_sklearn.linalg.eigh._numba"): "numba is optional",
    ("ipca_sklearn.linalg.eigh._choice", "ipca_sklearn.linalg.eigh._triton"): "Triton is optional",
}

# They declare options, which `--help` and wrong command lines need at once: their functions import what computes.
# tests/test_imports.py shows that declaring loads neither torch nor scikit-learn.
OPTION_MODULES = {f"ipca_sklearn.cli.{name}" for name in ("_arguments", "_outputs", *COMMANDS.values())}


@cache
def modules(package: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of every module of a package."""
    trees = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_python(
        "import sys; sys.argv[1:] = ['--no-cache']; from importlinter.cli import lint_imports_command as lint; lint()",
        folder,
    )


def test_rooms_keep_their_order() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


# Modules that break a contract, the contract, and what the linter says of each.
ILLEGAL = [
    ("linalg/_a.py", "from ipca_sklearn.decomposition import BatchedIncrementalPCA", "order", "linalg._a -> "),
    ("linalg/_b.py", "from ipca_sklearn import BatchedIncrementalPCA", "order", "linalg._b -> ipca_sklearn (l.1)"),
    ("features/_c.py", "def late():\n    import ipca_sklearn.decomposition", "order", "features._c -> "),
    ("decomposition/_d.py", "from ipca_sklearn import features", "order", "decomposition._d -> "),
    ("metrics/_e.py", "from ipca_sklearn import persistence", "order", "metrics._e -> "),
    ("attic.py", "", "order", "not listed as layers:\n\n- ipca_sklearn.attic"),
    ("linalg/_f.py", "from ipca_sklearn.exceptions import ImageReadError", "linalg", "linalg._f -> "),
    ("detection/_g.py", "def late():\n    from PIL import Image", "no_images", "detection._g -> PIL (l.2)"),
    (
        "datasets/_h.py",
        "from ipca_sklearn.datasets import _i",
        "acyclic",
        "No cycles are allowed in ipca_sklearn.datasets.",
    ),
    ("datasets/_i.py", "def late():\n    from ipca_sklearn.datasets import _h", "acyclic", "._i -> ._h (1 import)"),
]


def test_every_illegal_import_is_named_under_its_contract(tmp_path: Path) -> None:
    """All in one copy of the package, which is linted once."""
    shutil.copytree(PACKAGE, tmp_path / "ipca_sklearn", ignore=shutil.ignore_patterns("__pycache__"))
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(settings, encoding="utf-8")
    for name, code, _, _ in ILLEGAL:
        (tmp_path / "ipca_sklearn" / name).write_text(code, encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stderr
    contracts = dict(re.findall(r'^id = "(\w+)"\nname = "(.*)"$', settings, re.MULTILINE))
    assert {contract for _, _, contract, _ in ILLEGAL} == set(contracts)
    _, *sections = re.split(
        "|".join(f"^{re.escape(name)}\n-+$" for name in contracts.values()), done.stdout, flags=re.M
    )
    broken = dict(zip(contracts, sections, strict=True))
    for name, _, contract, expected in ILLEGAL:
        assert expected in broken[contract], name


def cycles(package: str) -> list[tuple[str, str]]:
    """Return the imports, those in function bodies too, from which a chain of imports leads back."""
    graph = grimp.build_graph(package, cache_dir=None)
    imports = [(name, used) for name in graph.modules for used in graph.find_modules_directly_imported_by(name)]
    return sorted((name, used) for name, used in imports if graph.chain_exists(importer=used, imported=name))


def test_no_module_imports_itself_through_others() -> None:
    assert cycles("ipca_sklearn") == []


def test_a_cycle_through_a_package_and_a_function_body_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "with_a_cycle"
    package.mkdir()
    (package / "__init__.py").write_text("from with_a_cycle.one import f")
    (package / "one.py").write_text("import with_a_cycle.two\ndef f(): pass")
    (package / "two.py").write_text("def g():\n    from with_a_cycle import f")
    monkeypatch.syspath_prepend(tmp_path)
    found = cycles("with_a_cycle")
    assert ("with_a_cycle.two", "with_a_cycle") in found
    assert ("with_a_cycle", "with_a_cycle.one") in found


def late_imports(trees: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """Return (module, what it imports) for imports of the package itself in function bodies."""
    package = next(iter(trees)).partition(".")[0]
    found = set()
    for module, tree in trees.items():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for node in (inner for function in functions for inner in ast.walk(function)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = ["." * node.level + (node.module or "")]
            else:
                continue
            found |= {(module, name) for name in names if name.startswith(".") or name.partition(".")[0] == package}
    return found


def test_only_what_is_optional_is_imported_in_a_function_body_except_by_modules_of_options() -> None:
    late = late_imports(modules(PACKAGE))
    assert {(module, used) for module, used in late if module not in OPTION_MODULES} == set(LATE_IMPORTS)


def test_an_import_in_a_function_body_is_found(tmp_path: Path) -> None:
    package = tmp_path / "late"
    package.mkdir()
    (package / "one.py").write_text("import late.two\nclass A:\n    def f(self):\n        import late.two as two, os\n")
    (package / "two.py").write_text("def f():\n    from . import one\n")
    assert late_imports(modules(package)) == {("late.one", "late.two"), ("late.two", ".")}


def is_private(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"_[A-Za-z]\w*", name) is not None


def defined_attributes(tree: ast.Module) -> Iterator[str]:
    """Yield the underscore attributes that the classes of a module define or assign to themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield inner.name
                targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
                yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr


def is_own(value: ast.expr) -> bool:
    """Whether an expression is `self`, `cls` or `super()`."""
    if isinstance(value, ast.Call):
        value = value.func
    return isinstance(value, ast.Name) and value.id in ("self", "cls", "super")


def read_attributes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of the attributes that a module reads, writes or asks for by name on other objects."""
    imported = {
        alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base, name = node.value, node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("getattr", "setattr", "hasattr"):
            base, name = node.args[0], getattr(node.args[1], "value", None)
        else:
            continue
        if not is_own(base) and not (isinstance(base, ast.Name) and base.id in imported):
            yield node.lineno, name


def trespasses(trees: dict[str, ast.Module]) -> list[str]:
    """Return where a module touches an underscore attribute that only other rooms define."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    owners: dict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        for name in filter(is_private, defined_attributes(tree)):
            owners[name].add(room(module))
    return [
        f"{module}, line {line}: {name} belongs to {', '.join(sorted(owners[name]))}"
        for module, tree in trees.items()
        for line, name in read_attributes(tree)
        if is_private(name) and owners.get(name) and room(module) not in owners[name]
    ]


def test_no_room_reads_underscore_attributes_of_another() -> None:
    assert trespasses(modules(PACKAGE)) == []


def test_an_underscore_attribute_of_another_room_is_found(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "one").mkdir(parents=True)
    (package / "one" / "a.py").write_text("class A:\n    _x: int = 0\n    def _f(self):\n        self._y = 1\n")
    (package / "one" / "b.py").write_text("def f(a):\n    return a._x + a._y + a._f()\n")
    (package / "two.py").write_text(
        "def f(a, b):\n    a.b._x += 1\n    getattr(a, '_y')\n    a._z\n    a.__dict__\n"
        "class B(A):\n    def g(self):\n        return self._f() or super()._f()\n"
    )
    assert trespasses(modules(package)) == [
        "house.two, line 2: _x belongs to house.one",
        "house.two, line 3: _y belongs to house.one",
    ]


# These rooms use the others as a program of a user does.
THIN_ROOMS = ("cli", "watching")


def private_imports(trees: dict[str, ast.Module], rooms: tuple[str, ...]) -> list[str]:
    """Return where modules of some rooms import private modules or names of other rooms; `_utils` is of all."""
    found = []
    for module, tree in trees.items():
        package, _, rest = module.partition(".")
        own = f"{package}.{rest.partition('.')[0]}."
        if rest.partition(".")[0] not in rooms:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                parts = name.split(".")
                if parts[0] == package and not name.startswith((own, f"{package}._utils.")):
                    found += [f"{module}: {name}"] if any(map(is_private, parts)) else []
    return found


def test_the_command_line_and_the_watch_import_only_public_names() -> None:
    trees = modules(PACKAGE)
    assert all(f"ipca_sklearn.{room}" in trees for room in THIN_ROOMS)
    assert private_imports(trees, THIN_ROOMS) == []


def test_a_private_import_of_another_room_is_found(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "cli").mkdir(parents=True)
    (package / "one.py").write_text("from house.two import _x\n")
    (package / "cli" / "__init__.py").write_text("from house.cli._a import f\nfrom house._utils._b import g\n")
    (package / "cli" / "_a.py").write_text(
        "import house.one._c\nfrom house import __version__, one\ndef f():\n    from house.two._d import x\n"
    )
    assert private_imports(modules(package), ("cli",)) == [
        "house.cli._a: house.one._c",
        "house.cli._a: house.two._d.x",
    ]


def test_the_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == "BSD-3-Clause"
    assert {"message", "title", "authors", "abstract", "keywords"} <= set(citation)
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year", "collection-title", "conference"} <= set(paper)
    assert [author["family-names"] for author in paper["authors"]] == ["Lee", "Nagai", "Minezawa"]


@pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason=".ci/ is part of the repository, not of a package")
def test_the_lowest_version_of_every_dependency_is_pinned() -> None:
    done = subprocess.run([sys.executable, str(ROOT / ".ci" / "minimum.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert set(done.stdout.split()) >= {requirement.replace(">=", "==") for requirement in required}
