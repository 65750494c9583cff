"""Sphinx builds the documentation with this: ``make docs``."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import generated  # noqa: E402

generated.write(HERE / "generated")

project = "fastntk_sk"
author = "The fastntk_sk developers"
project_copyright = author
release = version = installed("fastntk_sk")
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # formulas without a connection
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "repository_links",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "**/README.rst", "auto_examples/**/*.md5"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# docstrings that are inherited from scikit-learn link into its own pages
suppress_warnings = ["ref.ref", "ref.term"]
autodoc_typehints = "none"
numpydoc_show_class_members = False
html_theme = "pydata_sphinx_theme"
html_title = "fastntk_sk"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"index": []}
html_theme_options = {
    "navigation_with_keys": False,
    "search_as_you_type": True,
    "show_prev_next": False,
    "show_toc_level": 2,
}
sphinx_gallery_conf = {
    "examples_dirs": ["../examples/quickstart", "../examples/howto"],
    "gallery_dirs": ["auto_examples/quickstart", "auto_examples/howto"],
    "filename_pattern": "/plot_",
    "backreferences_dir": "generated/gallery",
    "doc_module": ("fastntk_sk",),
    "download_all_examples": False,
    "show_memory": False,
}
