"""The figure of a run's epochs."""

import numpy as np
import pandas as pd

from acertlab import visualization as plots


def test_training_history():
    columns = {"epoch": [0, 1, 2], "loss": [2.0, 1.5, 1.0], "eps_t": [0.0, 0.1, 0.2]}
    columns |= {f"val_{name}": [0.1, 0.2, 0.3] for name in ("acc", "acr", "art")}
    columns |= {"share_zero": [None, 0.5, 0.2], "share_inside": [None, 0.3, 0.3], "share_cap": [None, 0.2, 0.5]}
    traces = {trace.name: trace for trace in plots.training_history(pd.DataFrame(columns)).data}
    np.testing.assert_allclose(traces["ART"].y, [10, 20, 30])
    assert list(traces["radius 0"].x) == [2, 3]  # epochs are counted from 1 where shown; no boxes before the ramp
    np.testing.assert_allclose(sum(np.array(traces[n].y) for n in ("radius 0", "inside", "at eps_max,t")), [100, 100])
    assert list(traces["loss"].y) == [2.0, 1.5, 1.0]
