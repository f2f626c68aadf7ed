"""Sphinx: python -m sphinx -W --keep-going -b html docs docs/_build/html (needs `pip install -e ".[docs]"`)."""

import os
import warnings
from typing import Any

import matplotlib
from sphinx.util.nodes import get_node_source

import ipca_sklearn

matplotlib.use("Agg")

project = "ipca_sklearn"
author = "The ipca_sklearn developers"
copyright = "The ipca_sklearn developers"
release = version = ipca_sklearn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
# Links to other projects' pages need the network; without it their names are plain text.
if os.environ.get("IPCA_SKLEARN_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "numpy": ("https://numpy.org/doc/stable/", None),
        "sklearn": ("https://scikit-learn.org/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "examples", "**.ipynb"]
templates_path = ["_templates"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say more
numpydoc_show_class_members = False
default_role = "code"  # single backticks in docstrings

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
    "copyfile_regex": r"(?!)",
}
warnings.filterwarnings("ignore", message=".*FigureCanvasAgg is non-interactive.*")

html_theme = "pydata_sphinx_theme"
html_title = "ipca_sklearn"
html_show_sourcelink = False
# Pages without pages below them have nothing to show beside their text.
_alone = (
    "quickstart", "guide_tasks", "guide_concepts", "guide_operations", "serving", "method", "coming_from", "accuracy",
    "paper_experiments", "dev_notes",
)  # fmt: skip
html_sidebars: dict[str, list[str]] = {page: [] for page in _alone}
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}


def as_plain_text(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Return the text of a link that an inherited docstring of scikit-learn makes to its own pages."""
    is_term = node.get("reftype") == "term"  # of scikit-learn's glossary
    return content if is_term or "docstring of sklearn." in (get_node_source(node) or "") else None


def setup(app: Any) -> None:
    """Connect what Sphinx calls."""
    app.connect("missing-reference", as_plain_text, priority=900)  # after intersphinx, which knows these pages
