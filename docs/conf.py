"""How the documentation is built: `make docs`. Nothing is fetched, and every warning is an error."""

import inspect
import re
import sys
from pathlib import Path

from docutils.utils.math.latex2mathml import tex2mathml

import sqs_jax

sys.path.insert(0, str(Path(__file__).parent))

project = "sqs-jax"
author = "the sqs-jax authors"
copyright = "the sqs-jax authors, Apache-2.0"  # noqa: A001 - as Sphinx has it
version = release = sqs_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "sqs-jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
exclude_patterns = ["build", "images", "tutorials/*.py", "diagrams"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# A tutorial is run when it is built, and a cell that fails fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autosummary_generate = True
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "member-order": "bysource", "undoc-members": False}
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "literal"
nitpicky = True
# Types of other packages, whose documentation is not at hand, and names of axes in annotations.
nitpick_ignore_regex = [
    ("py:.*", r"(?!sqs_jax).*"),
    ("py:.*", r"sqs_jax.*\.(Labels|Samples|Gate|Basis|Method|Axes|Report|Block|Cache|Activation|Reading)"),
    ("py:.*", r"sqs_jax.*\.(Decoder|LanguageModel|Architecture)"),  # by the modules that define them
]


def setup(app):
    """Docstrings are plain text with formulas; formulas are shown by the browser itself."""
    app.connect("autodoc-process-docstring", _as_markup, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    return {"parallel_read_safe": True}


html_math_renderer = "mathml"


def _inline_math(self, node):
    self.body.append(tex2mathml(node.astext()))
    from docutils import nodes

    raise nodes.SkipNode


def _block_math(self, node):
    from docutils import nodes

    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


_SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes):\s*$")


def _as_markup(app, what, name, obj, options, lines):
    """A docstring of ours as reStructuredText: formulas stand in blocks, and no sign has a second meaning."""
    fields = getattr(obj, "__dataclass_fields__", None) if inspect.isclass(obj) else None
    text, in_section, block = [], False, False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if _SECTION.match(line):
            in_section = True
        elif line.strip() and indent == 0:
            in_section = False
        is_block = bool(line.strip()) and indent >= 4 and not in_section and not line.lstrip().startswith(">>>")
        if is_block and not block:
            text += [".. code-block:: text", ""]
        if block and not is_block and line.strip():
            block = False
        block = block or is_block
        text.append(line if is_block or ">>>" in line else _escaped(line))
    if fields and any(field.metadata.get("help") for field in fields.values()):
        text += ["", *(f":param {field.name}: {_escaped(_field(field))}" for field in fields.values())]
    lines[:] = text


def _field(field) -> str:
    within = field.metadata.get("within")
    bounds = f" A number {within}." if within else ""
    return f"{field.metadata['help']}{bounds} Default: `{field.default!r}`."


def _escaped(line: str) -> str:
    """`*` and `|` are signs of formulas; a trailing `_` would be a link."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", re.sub(r"(\w)_(?=\W|$)", r"\1\\_", part))
        for part in parts
    )
