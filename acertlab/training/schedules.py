"""Ramps of eps_{max,t}: 0 at and before step ``first``, ``eps`` (pixel units) at and after step ``last``.

first = last is no ramp: eps from that step on.
"""

MID, BETA = 0.25, 4.0  # the smooth ramp: which share of it is a power, and which


def smooth_ramp(step: int, first: int, last: int, eps: float) -> float:
    """The smooth ramp: a (t - i)^BETA from i = first up to step m, then linear, equal in value and slope at m.

    m = i + int(MID (f - i)); a = eps / ((f - m) BETA (m - i)^(BETA-1) + (m - i)^BETA), f = last. A ramp too short to
    have a power is linear.

    Source: Shi et al. 2021 (the schedule of auto_LiRPA's training examples).
    """
    middle = first + int(MID * (last - first))
    if middle == first or step >= last or step <= first:
        return linear_ramp(step, first, last, eps)
    scale = eps / ((last - middle) * BETA * (middle - first) ** (BETA - 1) + (middle - first) ** BETA)
    if step < middle:
        return scale * (step - first) ** BETA
    at_middle = scale * (middle - first) ** BETA
    return at_middle + (eps - at_middle) * (step - middle) / (last - middle)


def linear_ramp(step: int, first: int, last: int, eps: float) -> float:
    """The linear ramp: a straight line between."""
    if step >= last:
        return eps
    return eps * (step - first) / (last - first) if step > first else 0.0


RAMPS = {"smooth": smooth_ramp, "linear": linear_ramp}
