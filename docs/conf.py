"""How Sphinx builds the site of these pages: `just docs`."""

from kdrun import __version__

project = "kdrun"
version = release = __version__
copyright = "kdrun developers, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"kdrun {__version__}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
highlight_language = "text"  # of blocks that name none: commands, and what they print
myst_heading_anchors = 3  # links to a page's sections, as GitHub makes them
default_role = "literal"  # what stands between backticks in docstrings
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
