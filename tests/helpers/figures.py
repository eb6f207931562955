"""Figures compared, live ones with plain ones."""

import numpy as np


def plain(figure):
    """A figure's traces and layout, arrays as lists; without what is only of a live one, or of one size of window."""
    content = {"data": [trace.to_plotly_json() for trace in figure.data], "layout": figure.layout.to_plotly_json()}

    def listed(value):
        if isinstance(value, dict):
            return {k: listed(v) for k, v in value.items() if k not in ("uid", "template", "width") and v is not None}
        if isinstance(value, (list, tuple, np.ndarray)):
            return [listed(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
        return "nan" if isinstance(value, float) and np.isnan(value) else value

    widths = [trace.get("width") for trace in content["data"]]  # of bars
    return listed(content) | {"bars": widths}


def same(live, figure):
    """A live figure holds what the pure one holds, in every trace and in the layout."""
    assert plain(getattr(live, "figure", live)) == plain(figure)
