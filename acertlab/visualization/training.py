"""Figures of a run's epochs."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from acertlab.visualization.style import BLACK, BLUE, GREEN, GREY, SKY, VERMILLION
from acertlab.visualization.style import layout as _layout


def training_history(history: pd.DataFrame) -> go.Figure:
    """What a run's epochs did: the scores on validation, whose boxes were how large, and the loss under eps_{max,t}.

    Args:
        history: A row an epoch, as a run's folder keeps it.
    """
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05,
                           specs=[[{}], [{}], [{"secondary_y": True}]])  # fmt: skip
    figure.update_layout(**_layout("Training, epoch by epoch", height=640), hovermode="x unified")
    figure.update_layout(legend_traceorder="normal")
    epoch = history.epoch + 1
    scores = [("Acc", BLUE, "square"), ("ACR", GREEN, "diamond"), ("ART", VERMILLION, "star")]
    for name, colour, symbol in scores:
        figure.add_scatter(x=epoch, y=100 * history[f"val_{name.lower()}"], name=name, mode="lines+markers",
                           line_color=colour, marker_symbol=symbol, row=1, col=1)  # fmt: skip
    shares = [("zero", "radius 0", VERMILLION), ("inside", "inside", SKY), ("cap", "at eps_max,t", GREEN)]
    for name, label, colour in shares:
        share = 100 * history[f"share_{name}"].dropna()  # none before the ramp begins
        figure.add_scatter(x=epoch[share.index], y=share, name=label, mode="lines", line_color=colour,
                           stackgroup="share", row=2, col=1)  # fmt: skip
    figure.add_scatter(x=epoch, y=history.loss, name="loss", mode="lines", line_color=BLACK, row=3, col=1)
    figure.add_scatter(x=epoch, y=history.eps_t, name="eps_max,t", mode="lines", line={"color": GREY, "dash": "dash"},
                       row=3, col=1, secondary_y=True)  # fmt: skip
    for row, title in enumerate(("validation (%)", "training boxes (%)", "loss"), start=1):
        figure.update_yaxes(title_text=title, row=row, col=1, secondary_y=False)
    figure.update_yaxes(title_text="eps_max,t", tickmode="auto", rangemode="tozero", row=3, col=1, secondary_y=True)
    figure.update_xaxes(title_text="epoch", row=3, col=1)
    return figure
