"""The API reference: C and C++ by Doxygen and Breathe, Python by autodoc, one page set with one search.

    .ci/docs                        what CI does: builds it, and fails on any warning
    make docs                       the same on a fresh clone; the first page is build/reference/index.html

A public symbol without documentation is a warning, in every language, and so is a reference that leads nowhere.
"""

import pathlib
import subprocess

import foveal
from sphinx.util import logging

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
XML = ROOT / "build/reference-xml"

project = "foveal"
copyright = "the foveal contributors, Apache-2.0"
version = release = foveal.__version__
html_theme = "furo"
html_title = f"foveal {version}"
html_show_sphinx = False
extensions = ["breathe", "sphinx.ext.autodoc"]
breathe_projects = {"foveal": str(XML)}
breathe_default_project = "foveal"
breathe_domain_by_extension = {"h": "c", "hpp": "cpp"}
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
nitpicky = True
# Names of other libraries and of built-in types, which have their pages elsewhere.
nitpick_ignore_regex = [
    (r"c:identifier", r"(u?int(8|32|64)_t|size_t)"),
    (r"cpp:identifier", r"(std|std::.*|u?int(8|32|64)_t|size_t|foveal_.*)"),
    (r"py:.*", r"(torch\..*|jax\..*|numpy\..*|ArrayLike|collections\.abc\..*)"),
    (r"py:.*", r"(.*Error|ValueError|optional|object|int|str|bool)"),
    (r"py:class", r"foveal\.compat\.flashinfer\._Wrapper"),
]


def run_doxygen(app):
    XML.parent.mkdir(exist_ok=True)
    settings = (HERE / "Doxyfile").read_text() + f'OUTPUT_DIRECTORY = "{XML.parent}"\nXML_OUTPUT = {XML.name}\n'
    subprocess.run(["doxygen", "-"], input=settings, text=True, cwd=ROOT, check=True)


def take_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text, laid out for help(): they are shown as that."""
    if any(lines):
        lines[:] = ["::", "", *(f"    {line}" for line in lines)]
    else:
        logging.getLogger(__name__).warning("%s %s has no docstring", what, name)


def setup(app):
    app.connect("builder-inited", run_doxygen)
    app.connect("autodoc-process-docstring", take_docstring)
