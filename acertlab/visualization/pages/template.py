"""What pages are made of: their templates, drawn figures and tables, which load nothing."""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals["plotly"] = lambda: Markup(get_plotlyjs())


def page(template: str, **content: object) -> Markup:
    """HTML of a template in `templates/`: text is escaped, `Markup` is taken as it is."""
    return Markup(_TEMPLATES.get_template(template).render(**content))


def table_html(table: pd.DataFrame) -> Markup:
    """A table without its index."""
    return Markup(table.to_html(index=False, border=0))  # pandas escapes


def drawn(figure: go.Figure) -> Markup:
    """A figure for a page whose head has plotly's script."""
    config = {"responsive": True, "displaylogo": False}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, include_mathjax=False, config=config))
