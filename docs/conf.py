"""Settings of the documentation site: `sphinx-build -W docs _docs`. What Sphinx lacks is in `extension.py`."""
import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
settings = ConfigParser(delimiters=["="])
settings.read(HERE.parent / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project, author, release = settings["title"], settings["author"], settings["version"]
project_copyright = settings["copyright"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "extension"]
exclude_patterns = ["**/.ipynb_checkpoints"]
nb_execution_mode = "off"  # the chapters stand as they are in git
nb_output_stderr = "remove"
nb_ipywidgets_js = {}  # widgets are pictures here; the scripts would come from elsewhere
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
python_maximum_signature_line_length = 90
default_role = "literal"
html_theme = "furo"
html_title = "omnijet"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
linkcheck_anchors = False
linkcheck_retries = 3  # a server may be busy, once
