"""Accuracy, ACR and ART (Eq. 12-13), the certified-accuracy curve, and the Pareto front of accuracy and robustness.

Pure functions of arrays (torch tensors, numpy arrays or pandas columns) and tables. Everything is pooled over samples,
in float64; ACR and ART are fractions in [0, 1].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from acertlab._validation import Within, check
from acertlab.bounds.checks import inputs_of, labels_of, weight_of
from acertlab.bounds.graph.output import as_classifier
from acertlab.data.datasets import on_device_of
from acertlab.radius.search import RadiusStatus

FLOAT32_ROUNDING = 2.0**-24  # rounding eps to float32 lowers it by at most this much, relatively
POSITIVE = Within(0, open_low=True)


def accuracy(logits_or_model: ArrayLike | nn.Module, *data: ArrayLike, batch_size: int = 512) -> float:
    """Share of samples classified correctly: `accuracy(logits, y)` or `accuracy(model, x, y)`.

    Correct means that logit_y is strictly greater than every other logit. A tie is a mistake, as in the definition of
    the radius (Eq. 7: a margin of 0 has radius 0), and so is a NaN.

    Args:
        logits_or_model: Logits (N, C), or one a sample, (N, 1) or (N,), positive for class 1; or a model in
            evaluation mode; x is moved to its device, batch by batch.
        data: y (N,) integer labels; for a model x, y, with x (N, ...) float in pixel units or uint8 images.
        batch_size: Samples in a forward pass.

    Raises:
        ValueError: No samples, shapes that do not fit, labels outside 0..C-1, or a model in training mode.

    Example:
        >>> al.accuracy(torch.tensor([[0.2, 0.7], [0.9, 0.1]]), torch.tensor([1, 1]))
        0.5
    """
    if len(data) != 1 + isinstance(logits_or_model, nn.Module):
        raise TypeError(f"expected accuracy(logits, y) or accuracy(model, x, y), got {1 + len(data)} arguments")
    y = _tensor(labels_of(data[-1], torch.device("cpu")))
    if isinstance(logits_or_model, nn.Module):
        x = inputs_of(data[0], weight_of(logits_or_model, torch.zeros(())), images=True)
        if len(x) != len(y):
            raise ValueError(f"x and y must hold as many samples, got {len(x)} and {len(y)}")
        logits = _logits(logits_or_model, x, batch_size)
    else:
        logits = _tensor(logits_or_model)
        if logits.ndim and logits.shape[1:].numel() == 1:
            logits = torch.stack([torch.zeros_like(logits.flatten()), logits.flatten()], 1)
    if logits.ndim != 2 or logits.shape[1] < 2 or y.shape != logits.shape[:1] or len(y) == 0:
        shapes = f"{tuple(logits.shape)} and {tuple(y.shape)}"
        raise ValueError(f"logits and y must have shapes (N, C) and (N,) with N >= 1 and C >= 2, got {shapes}")
    if y.is_floating_point() or int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise ValueError(f"y must hold integers in 0..{logits.shape[1] - 1}, got {y.min()}..{y.max()} ({y.dtype})")
    y = y.long()[:, None].to(logits.device)
    others = logits.scatter(1, y, float("-inf")).amax(1)  # (N,), NaN where one of them is
    return int((logits.gather(1, y)[:, 0] > others).sum()) / len(y)


def acr(radii: ArrayLike, eps_max: float) -> float:
    r"""Average certified radius, Eq. (12), in [0, 1].

    $$ACR = \frac{1}{N \varepsilon_{\max}} \sum_n \min(\mathcal E(x_n), \varepsilon_{\max})$$

    Args:
        radii: Certified radii (N,), pixel units; they may have been searched beyond eps_max.
        eps_max: The perceptual limit, pixel units, > 0.

    Example:
        >>> round(al.acr([0.0, 0.1, 0.3], eps_max=0.2), 6)  # (0 + 0.1 + 0.2) / 3 / 0.2
        0.5
    """
    return float(np.minimum(_radii(radii) / check("eps_max", eps_max, POSITIVE), 1.0).mean())


def art(acc: Any, acr: Any) -> Any:
    r"""Accuracy-robustness tradeoff, Eq. (13); numbers or arrays, >= 0. NaN stays NaN.

    $$ART = \sqrt{Acc \cdot ACR}$$

    Example:
        >>> round(al.art(acc=0.9, acr=0.4), 6)
        0.6
    """
    if np.any(_array(acc) < 0) or np.any(_array(acr) < 0):
        raise ValueError(f"acc and acr must be >= 0, got acc = {acc!r}, acr = {acr!r}")
    return (acc * acr) ** 0.5


def certified_accuracy(radii: ArrayLike, eps_grid: ArrayLike) -> np.ndarray:
    """Share of samples that are certified at each eps (Fig. 3); the area under it up to eps_max is acr * eps_max.

    What a radius must be to count as certified at eps says `least_certified`. At eps = 0 this is the share of positive
    radii: the accuracy, unless a search failed.

    Args:
        radii: Certified radii (N,), pixel units.
        eps_grid: (E,), pixel units, >= 0 and not beyond the limit up to which the radii were searched.

    Returns:
        (E,) shares in [0, 1].

    Example:
        >>> al.certified_accuracy([0.0, 0.1, 0.3, 0.4], [0.1, 0.2]).tolist()
        [0.75, 0.5]
    """
    radii, eps = _radii(radii), _array(eps_grid)
    if eps.size == 0 or not np.all(eps >= 0):
        raise ValueError(f"eps_grid must hold numbers >= 0, got {eps_grid!r}")
    return (len(radii) - np.searchsorted(np.sort(radii), least_certified(eps))) / len(radii)


def least_certified(eps: ArrayLike) -> np.ndarray:
    """The least radius with which a sample counts as certified at eps, elementwise; always positive.

    That is eps itself, for a returned radius is one that was evaluated; less float32's rounding, because a search in
    float32 that ends at eps_max returns float32(eps_max), which may lie below.
    """
    return np.maximum(np.asarray(eps, dtype=float) * (1 - FLOAT32_ROUNDING), np.nextafter(0.0, 1.0))


def summarise(table: pd.DataFrame, eps_max: float, eps_grid: Sequence[float], radius_cap: float) -> dict[str, Any]:
    """Acc, ACR, ART and certified accuracies of a run's radii.parquet at any eps_max up to `radius_cap` (pixel units).

    As {"acc", "acr", "art": floats, "cert_acc": {eps: share}}, the last one for `eps_grid`.
    """
    if beyond := [eps for eps in (eps_max, *eps_grid) if eps > radius_cap]:
        raise ValueError(f"radii were searched up to radius_cap = {radius_cap}: nothing is known at eps {beyond}")
    robustness = acr(table["radius"], eps_max)
    shares = certified_accuracy(table["radius"], eps_grid) if len(eps_grid) else ()
    acc = float(correct(table).mean())
    cert_acc = {float(eps): float(share) for eps, share in zip(eps_grid, shares, strict=True)}
    return {"acc": acc, "acr": robustness, "art": art(acc, robustness), "cert_acc": cert_acc}


def mean_of_batches(table: pd.DataFrame, eps_max: float, batch_size: int) -> dict[str, float]:
    """Acc, ACR and ART as the paper's published code has them: Acc pooled, the others unweighted means over batches.

    ART is the mean of the batches' roots. Only to stand beside published figures; everything else pools samples
    (`summarise`).
    """
    batches = [table.iloc[start : start + batch_size] for start in range(0, len(table), batch_size)]
    accs = np.array([correct(batch).mean() for batch in batches])
    acrs = np.array([acr(batch["radius"], eps_max) for batch in batches])
    return {"acc": float(correct(table).mean()), "acr": float(acrs.mean()), "art": float(art(accs, acrs).mean())}


def correct(table: pd.DataFrame) -> pd.Series:
    """Which samples of a run's radii.parquet are classified correctly: (N,) bool; a tie and a NaN are mistakes."""
    judged = ~table["status"].isin([RadiusStatus.MISCLASSIFIED, RadiusStatus.NONFINITE])  # argmax finds a NaN, too
    return pd.Series(table["label"] == table["predicted"]) & judged


def pareto_front(df: pd.DataFrame, maximize: Sequence[str] = ("acc", "acr")) -> pd.DataFrame:
    """The rows that no other row dominates (at least as good in both columns, better in one), in O(n log n).

    Args:
        df: A row a candidate.
        maximize: Two columns, larger is better.

    Returns:
        Those rows with their index, sorted by the first column. Rows with a NaN in either column are never on the
        front; of rows equal in both columns the first is kept.

    Example:
        >>> import pandas as pd
        >>> al.pareto_front(pd.DataFrame({"acc": [0.9, 0.5, 0.4], "acr": [0.2, 0.6, 0.5]}))
           acc  acr
        1  0.5  0.6
        0  0.9  0.2
    """
    return df.iloc[front_places(*_two_columns(df, maximize))]


def front_places(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where the points of `pareto_front` are in two arrays (N,): (F,) places, `first` rising and `second` falling."""
    order = np.lexsort((-second, -first))  # best first, and equal ones in their order
    order = order[~(np.isnan(first) | np.isnan(second))[order]]
    best_before = np.maximum.accumulate(np.concatenate(([-np.inf], second[order])))[:-1]
    return order[second[order] > best_before][::-1]


def hypervolume(
    df: pd.DataFrame, maximize: Sequence[str] = ("acc", "acr"), reference: tuple[float, float] = (0.0, 0.0)
) -> float:
    """Area that the rows dominate above `reference`; rows with a NaN, or below it, add nothing.

    Args:
        df, maximize: A row a candidate, and two of its columns, as in `pareto_front`.
        reference: The corner from which the area is counted.

    Example:
        >>> import pandas as pd
        >>> round(al.hypervolume(pd.DataFrame({"acc": [0.9, 0.5], "acr": [0.2, 0.6]})), 6)  # 0.9 * 0.2 + 0.5 * 0.4
        0.38
    """
    if len(reference) != 2 or not np.all(np.isfinite(reference)):
        raise ValueError(f"reference must be two finite numbers, got {reference!r}")
    return dominated_area(*_two_columns(df, maximize), reference)


def dominated_area(first: np.ndarray, second: np.ndarray, reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """`hypervolume` of points given as two arrays (N,)."""
    places = front_places(first, second)
    first, second = np.maximum(first[places], reference[0]), np.maximum(second[places], reference[1])
    widths = np.diff(first, prepend=reference[0])  # first rises along the front, second falls
    return float(np.sum(widths * (second - reference[1])))


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    if model.training:
        raise ValueError("model is in training mode; call model.eval() first")
    if len(x) == 0 or batch_size < 1:
        raise ValueError(f"there must be samples, and batch_size >= 1; got {len(x)} and {batch_size!r}")
    classifier, _ = as_classifier(model, on_device_of(model, x[:1]))
    return torch.cat([classifier(on_device_of(model, batch)).cpu() for batch in x.split(batch_size)])


def _tensor(values: ArrayLike) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.array(values))


def _array(values: ArrayLike) -> np.ndarray:
    return _tensor(values).cpu().double().numpy()


def _radii(radii: ArrayLike) -> np.ndarray:
    values = _array(radii)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"radii must be a non-empty vector (N,), got shape {values.shape}")
    if not np.all(values >= 0):
        raise ValueError(f"radii must be >= 0, got {values[~(values >= 0)][0]} (index {np.argmin(values >= 0)})")
    return values


def _two_columns(df: pd.DataFrame, maximize: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    if len(maximize) != 2 or not set(maximize) <= set(df.columns):
        raise ValueError(f"maximize must name two columns of {list(df.columns)}, got {maximize!r}")
    columns = df[list(maximize)].to_numpy(dtype=np.float64)
    if len(df) == 0 or np.any(np.isinf(columns)):
        raise ValueError(f"df must have rows, and no infinite value in {tuple(maximize)}; got {len(df)} rows")
    return columns[:, 0], columns[:, 1]
