"""The documentation site, which `make docs` builds with Sphinx: its pages are the Markdown files of the repository."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

project = "tintc"
author = "The tintc authors"
copyright = "The tintc authors, Apache-2.0"

# The source folder is the repository's root, so that the links between pages, which work in a checkout, work here too.
extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "myst_nb", "generated", "anchors", "mathml"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/notebooks/*.ipynb", "benchmarks/RESULTS.md", "C*.md", "SECURITY.md"]
exclude_patterns = ["docs/package.md", ".*", "build", "shared", "tests", "tintc", "tools", "examples", "*.egg-info"]
html_extra_path = ["redirect"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
nb_execution_mode = "off"
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
viewcode_line_numbers = True
# Types of other packages, which have no page here.
nitpicky = False

html_theme = "furo"
html_title = "tintc"
html_static_path = ["static"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
pygments_style = "tango"
pygments_dark_style = "native"
