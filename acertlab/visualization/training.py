"""Figures of a run's epochs."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from acertlab.visualization.style import BLACK, BLUE, GREEN, GREY, SKY, VERMILLION, base_layout


def training_history(history: pd.DataFrame) -> go.Figure:
    """A run, epoch by epoch: the scores on validation, whose boxes were how large, and the loss under eps_{max,t}."""
    specs = [[{}], [{}], [{"secondary_y": True}]]
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05, specs=specs)
    figure.update_layout(base_layout("Training, epoch by epoch", height=690), hovermode="x unified")
    figure.update_layout(legend_traceorder="normal", margin_t=135)  # four rows of the legend in a narrow window
    epoch = history.epoch + 1
    scores = [("Acc", BLUE, "square"), ("ACR", GREEN, "diamond"), ("ART", VERMILLION, "star")]
    for name, colour, symbol in scores:
        look = {"mode": "lines+markers", "line_color": colour, "marker_symbol": symbol}
        figure.add_scatter(x=epoch, y=100 * history[f"val_{name.lower()}"], name=name, **look, row=1, col=1)
    shares = [("zero", "radius 0", VERMILLION), ("inside", "inside", SKY), ("cap", "at eps_max,t", GREEN)]
    for name, label, colour in shares:
        share = 100 * history[f"share_{name}"].dropna()  # none before the ramp begins
        look = {"mode": "lines", "line_color": colour, "stackgroup": "share"}
        figure.add_scatter(x=epoch[share.index], y=share, name=label, **look, row=2, col=1)
    figure.add_scatter(x=epoch, y=history.loss, name="loss", mode="lines", line_color=BLACK, row=3, col=1)
    look = {"mode": "lines", "line": {"color": GREY, "dash": "dash"}}
    figure.add_scatter(x=epoch, y=history.eps_t, name="eps_max,t", **look, row=3, col=1, secondary_y=True)
    for row, title in enumerate(("validation (%)", "training boxes (%)", "loss"), start=1):
        figure.update_yaxes(title_text=title, row=row, col=1, secondary_y=False)
    figure.update_yaxes(title_text="eps_max,t", tickmode="auto", rangemode="tozero", row=3, col=1, secondary_y=True)
    figure.update_xaxes(title_text="epoch", row=3, col=1)
    return figure
