"""The site: `make docs` builds it into build/site, and fails where it would warn."""

import importlib.metadata
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))

project = "tracin-beam"
author = "the authors of tracin-beam"
release = importlib.metadata.version("tracin-beam")
html_title = "tracin-beam"
html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Two hyphens begin a flag.
smartquotes = False
html_show_copyright = False

extensions = ["myst_nb", "api", "cli", "figures"]
exclude_patterns = ["_ext", "examples"]

# Anchors of the headings that pages link to.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# The notebook is run anew in each build, in a directory of its own. Its errors fail the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
# TensorFlow's and Beam's notices are no part of the page.
nb_output_stderr = "remove"
