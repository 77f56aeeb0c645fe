"""How Sphinx builds these pages: ``make doc``."""

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import sb3_pathwise

project = "sb3-pathwise"
author = "The sb3-pathwise developers"
copyright = "The sb3-pathwise developers"
release = version = sb3_pathwise.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "_shared"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# The notebooks hold the outputs of their last run, and the tests run them
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"show-inheritance": True}
# Every build is nitpicky. Without network there are no inventories of other projects: of names, ours must resolve
nitpick_ignore_regex = [("py:.*", r"(?!sb3_pathwise\b).*")]

html_theme = "furo"
html_title = f"sb3-pathwise {release}"
html_static_path = ["_static"]
html_css_files = ["figures.css"]
html_math_renderer = "mathml"
copybutton_exclude = ".linenos, .gp, .go"


def add_mathml(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Formulas as MathML, which browsers draw by themselves: MathJax would have to be fetched from elsewhere."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (add_mathml, None), (add_mathml, None))
