"""Functions of one variable with exactly known roots, and random families with the same arithmetic in torch and Python.

`PROBLEMS` is the table of known roots. `families` makes random functions: each is a formula over the columns of a
coefficient table, written with arithmetic operators only, so that it runs alike on tensors, arrays and Python floats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """f changes sign in [a, b] only at `root`; `noise`: what the rounding of f may move it, eps max(1, |root|)."""

    name: str
    f: Callable[[Tensor], Tensor]
    a: float
    b: float
    root: float
    noise: float = 0.0


PROBLEMS = (
    Problem("identity", lambda x: x, -1.0, 3.0, 0.0),
    Problem("line", lambda x: 2 * x - 1, -1.0, 3.0, 0.5),
    Problem("falling line", lambda x: 0.75 - x, 0.0, 1.0, 0.75),
    Problem("line, reversed bracket", lambda x: x - 0.3125, 4.0, -2.0, 0.3125),
    Problem("square root of two", lambda x: x * x - 2, 0.0, 2.0, math.sqrt(2), 2),
    Problem("minus square root of three", lambda x: x * x - 3, -2.0, 0.0, -math.sqrt(3), 2),
    Problem("cube root of five", lambda x: x * x * x - 5, 0.0, 3.0, 5 ** (1 / 3), 2),
    Problem("fourth root of 1/3", lambda x: (x * x) * (x * x) - 1 / 3, 0.0, 1.0, 3**-0.25, 2),
    Problem("triple root", lambda x: (x - 0.7) ** 3, 0.0, 1.0, 0.7, 2),
    Problem("fifth-order root", lambda x: (x + 1.5) ** 5, -4.0, 0.0, -1.5, 2),
    Problem("ninth-order root", lambda x: (1000 * (x - 3)) ** 9, 0.0, 10.0, 3.0),
    Problem("three roots, one inside", lambda x: x * (x - 2) * (x + 2), 1.0, 5.0, 2.0),
    Problem("Wilkinson, five factors", lambda x: (x - 1) * (x - 2) * (x - 3) * (x - 4) * (x - 5), 2.6, 3.4, 3.0),
    Problem("golden ratio", lambda x: x * x - x - 1, 1.0, 2.0, (1 + math.sqrt(5)) / 2, 4),
    Problem("sine", torch.sin, 2.0, 4.0, math.pi, 4),
    Problem("sine at zero", torch.sin, -1.0, 2.0, 0.0),
    Problem("cosine", torch.cos, 0.0, 3.0, math.pi / 2, 4),
    Problem("tangent", lambda x: torch.tan(x) - 1, 0.0, 1.5, math.pi / 4, 4),
    Problem("exponential", lambda x: torch.exp(x) - 2, 0.0, 5.0, math.log(2), 4),
    Problem("falling exponential", lambda x: torch.exp(-x) - 0.01, 0.0, 50.0, math.log(100), 4),
    Problem("steep exponential", lambda x: torch.exp(20 * x) - 1, -4.0, 3.0, 0.0, 2),
    Problem("logarithm", torch.log, 0.1, 7.0, 1.0, 2),
    Problem("logarithm, far", lambda x: torch.log(x) - 3, 1.0, 1e4, math.exp(3), 100),
    Problem("Lambert W(1)", lambda x: x * torch.exp(x) - 1, 0.0, 1.0, 0.5671432904097838, 4),
    Problem("Dottie number", lambda x: torch.cos(x) - x, 0.0, 1.0, 0.7390851332151607, 4),
    Problem("tanh", lambda x: torch.tanh(5 * (x - 0.25)), -2.0, 9.0, 0.25),
    Problem("arctan", lambda x: torch.atan(100 * (x - 1)), -10.0, 30.0, 1.0),
    Problem("hyperbola", lambda x: 1 / x - 3, 0.01, 10.0, 1 / 3, 2),
    Problem("cube root", lambda x: torch.sign(x) * x.abs() ** (1 / 3), -1.0, 8.0, 0.0),
    Problem("square root kink", lambda x: torch.sign(x - 2) * (x - 2).abs().sqrt(), 0.0, 5.0, 2.0),
    Problem("absolute value", lambda x: x.abs() - 0.25, 0.0, 8.0, 0.25),
    Problem("two slopes", lambda x: torch.where(x < 0.5, 100 * (x - 0.5), 0.01 * (x - 0.5)), 0.0, 1.0, 0.5),
    Problem("step", lambda x: torch.where(x < 0.3, -1.0, 1.0).to(x), 0.0, 1.0, 0.3, 2),
    Problem("hinge with plateau", lambda x: (x - 1).clamp(min=-0.5), 0.0, 3.0, 1.0),
    Problem("saturated", lambda x: (1e6 * (x - 0.125)).clamp(-1, 1), 0.0, 1.0, 0.125),
    Problem("tiny values", lambda x: 1e-30 * (x - 0.25), 0.0, 1.0, 0.25),
    Problem("huge values", lambda x: 1e30 * (x - 0.25), 0.0, 1.0, 0.25),
    Problem("root at a", lambda x: x - 1, 1.0, 2.0, 1.0),
    Problem("root at b", lambda x: x - 2, 1.0, 2.0, 2.0),
    Problem("large root", lambda x: x - 12345.5, 0.0, 1e6, 12345.5),
    Problem("pole in the bracket's end", lambda x: torch.log(x) + 1, 0.0, 2.0, math.exp(-1), 4),
)


@dataclass(frozen=True)
class Family:
    """Random functions f(x, *columns) with brackets [a_i, b_i] (in either order) in which the sign changes."""

    name: str
    f: Callable[..., Any]
    columns: tuple[Tensor, ...]  # (N,) float64 each
    a: Tensor
    b: Tensor
    exp: bool = False  # takes the exponential as its first coefficient, which torch, numpy and libm round differently

    def torch(self) -> Callable[..., Tensor]:
        return (lambda x, *c: self.f(x, torch.exp, *c)) if self.exp else self.f

    def numpy(self) -> Callable[..., np.ndarray]:
        return (lambda x, *c: self.f(x, np.exp, *c)) if self.exp else self.f

    def scalar(self, i: int, exp: Callable[[float], float] = math.exp) -> Callable[[float], float]:
        """The i-th function on Python floats."""
        c = tuple(column[i].item() for column in self.columns)
        return (lambda x: self.f(x, exp, *c)) if self.exp else (lambda x: self.f(x, *c))

    def with_sign_change(self, size: int) -> "Family":
        """The first `size` functions that are negative at one end and positive at the other."""
        f = self.torch()
        keep = (f(self.a, *self.columns).sign() * f(self.b, *self.columns).sign() < 0).nonzero().squeeze(1)[:size]
        assert len(keep) == size, f"{self.name}: only {len(keep)} functions change sign"
        columns = tuple(column[keep] for column in self.columns)
        return replace(self, columns=columns, a=self.a[keep], b=self.b[keep])


def polynomial(x, *coefficients):
    value = coefficients[0]
    for c in coefficients[1:]:
        value = value * x + c
    return value


def exponential(x, exp, scale, rate, slope, shift):
    return scale * exp(rate * x) + slope * x - shift


def ramp(x, left, width):
    """min(max(x - left, 0), width), with operators that round alike everywhere: |u| is exact."""
    u = x - left
    u = (u + abs(u)) * 0.5 - width
    return (u - abs(u)) * 0.5 + width


def piecewise_linear(x, shift, *pieces):
    value = shift
    for left, width, slope in zip(pieces[0::3], pieces[1::3], pieces[2::3], strict=True):
        value = value + slope * ramp(x, left, width)
    return value


def steep(x, slope, middle, shift):
    u = slope * (x - middle)
    return u / (1 + abs(u)) + shift


def flat(x, middle, scale, mix):
    """Odd powers up to nine, nearly flat around `middle`."""
    u = x - middle
    cube = u * u * u
    return scale * (mix * cube + (1 - mix) * cube * cube * cube)


def families(size: int, seed: int = 0) -> list[Family]:
    """Five families of `size` functions each, all with a strict sign change."""
    g = torch.Generator().manual_seed(seed)
    wanted, size = size, 2 * size + 20  # some draws have no sign change and are left out

    def uniform(low, high):
        return low + (high - low) * torch.rand(size, generator=g, dtype=torch.float64)

    def whole(low, high):
        return torch.randint(low, high, (size,), generator=g).double()

    def ends(low, high):
        a, b = uniform(low, high), uniform(low, high)
        return a, torch.where((a - b).abs() < 1e-3 * (high - low), b + 0.1 * (high - low), b)

    def between(u, v):  # a level strictly between two values
        t = uniform(0.02, 0.98)
        return u + t * (v - u)

    made = []
    a, b = ends(-2, 2)
    c = [uniform(-1, 1) * (whole(0, 4) > 0) for _ in range(5)] + [uniform(-3, 3), uniform(-1, 1)]
    c[-1] = c[-1] - between(polynomial(a, *c), polynomial(b, *c))
    made.append(Family("polynomial", polynomial, tuple(c), a, b))

    a, b = ends(-3, 5)
    c = [uniform(-2, 2), uniform(-4, 4), uniform(-1, 1), torch.zeros(size, dtype=torch.float64)]
    c[-1] = between(exponential(a, torch.exp, *c), exponential(b, torch.exp, *c))
    made.append(Family("exponential", exponential, tuple(c), a, b, exp=True))

    # Knots at sixteenths and small whole slopes, half of them 0: plateaus, also exactly at 0, and kinks at the root.
    width = [whole(1, 24) / 16 for _ in range(6)]
    left = [sum(width[:k], whole(-48, 0) / 16) for k in range(6)]
    slope = [whole(-1, 4) * (whole(0, 2) > 0) for _ in range(6)]
    pieces = [t for piece in zip(left, width, slope, strict=True) for t in piece]
    total = sum(w * s for w, s in zip(width, slope, strict=True))
    bend = whole(0, 6)  # the function's level at one of its knots, or a level in between
    level = sum((w * s * (bend > k) for k, (w, s) in enumerate(zip(width, slope, strict=True))), 0 * total)
    shift = -torch.where(whole(0, 2) > 0, level, uniform(0.02, 0.98) * total)
    a, b = left[0] - whole(0, 5) / 7, left[-1] + width[-1] + whole(0, 5) / 7
    made.append(Family("piecewise linear", piecewise_linear, (shift, *pieces), a, b))

    a, b = ends(-1, 1)
    c = [10 ** uniform(0, 9), between(a, b), uniform(-0.3, 0.3) * (whole(0, 2) > 0)]
    made.append(Family("steep", steep, tuple(c), a, b))

    a, b = ends(-2, 3)
    c = [between(a, b), 10 ** uniform(-6, 6), uniform(0, 1) * (whole(0, 2) > 0)]
    made.append(Family("flat", flat, tuple(c), a, b))
    return [family.with_sign_change(wanted) for family in made]


SHAPES = {  # f(x) - f(0), rising, >= 0; scaled so that every one has its root inside
    "line": lambda x: x,
    "root": lambda x: x.sqrt(),
    "square": lambda x: x**2,
    "power 30": lambda x: x**30,
    "power 0.1": lambda x: x**0.1,
    "exponential": lambda x: x.expm1(),
    "steep exponential": lambda x: (20 * x).expm1(),
    "knee": lambda x: x + 100 * (x - 1).clamp(min=0),
    "knee that flattens": lambda x: torch.minimum(x + 100 * (x - 1).clamp(min=0), 30 + 0.01 * x),
    "plateau at first": lambda x: (x - 0.7).clamp(min=0),
    "plateau in between": lambda x: x.clamp(max=0.8) + (x - 1.2).clamp(min=0),
    "stairs": lambda x: (x * 7).floor() / 7,
    "a jump": lambda x: 0.1 * x + 50.0 * (x > 0.6),
    "logistic": lambda x: torch.sigmoid(40 * (x - 0.9)) - torch.sigmoid(torch.tensor(-36.0, dtype=x.dtype)),
    "kinks": lambda x: sum((x - k / 50).clamp(min=0) for k in range(50)),
    "huge": lambda x: 1e30 * x**3,
    "tiny": lambda x: 1e-30 * x,
    "to infinity": lambda x: (1 / (1.5 - x).clamp(min=0) - 1 / 1.5).clamp(max=1e30),
}


def solvers_view(f: Tensor) -> Tensor:
    """As `margin_function` shows margins: never 0."""
    return torch.where(f == 0, torch.finfo(f.dtype).tiny, f)
