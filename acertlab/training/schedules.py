"""Ramps of eps_{max,t}."""


def smooth_ramp(step: int, first: int, last: int, eps: float, *, mid: float = 0.25, beta: float = 4.0) -> float:
    """eps_{max,t} by the smooth ramp: a (t - i)^beta up to step m, then linear to eps, equal in value and slope at m.

    m = i + int(mid (f - i)); a = eps / ((f - m) beta (m - i)^(beta-1) + (m - i)^beta).

    Args:
        step: t.
        first: i, the first step of the ramp: 0 at and before it.
        last: f, the ramp's last step: eps at and after it. first = last is no ramp: eps from that step on.
        eps: the value to reach, pixel units.
        mid: the share of the ramp that is a power; a ramp too short to have one is linear.
        beta: the power.

    Source: Shi et al. 2021 (the schedule of auto_LiRPA's training examples).
    """
    middle = first + int(mid * (last - first))
    if middle == first or step >= last or step <= first:
        return linear_ramp(step, first, last, eps)
    scale = eps / ((last - middle) * beta * (middle - first) ** (beta - 1) + (middle - first) ** beta)
    if step < middle:
        return scale * (step - first) ** beta
    at_middle = scale * (middle - first) ** beta
    return at_middle + (eps - at_middle) * (step - middle) / (last - middle)


def linear_ramp(step: int, first: int, last: int, eps: float) -> float:
    """eps_{max,t} by the linear ramp: 0 up to step ``first``, eps from step ``last`` on, a straight line between."""
    if step >= last:
        return eps
    return eps * (step - first) / (last - first) if step > first else 0.0


RAMPS = {"smooth": smooth_ramp, "linear": linear_ramp}
