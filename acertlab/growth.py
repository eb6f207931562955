"""Where a search for radii should begin: how margins grow with eps, seen on one made-up image.

What a network adds to its margins as eps grows, R(x, eps) - R(x, 0), is mostly the width of its bounds. That is much
alike from image to image, and far from a power of eps. So the radius of x is close to where the margins of any image
have grown by -R(x, 0), and R is about as steep there as they are. Both are guesses: a bad one costs evaluations, never
a guarantee. The image is made up, so that a sample's radius does not depend on which others are asked for.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from acertlab.box import Domain, ball
from acertlab.logsecant import EXPONENT, Trail
from acertlab.margin import Network

POINTS = 7  # radii that are looked at, and 0: one call of 8 rows
RANGE = 3e-2  # the smallest of them, relative to eps_max
PERIOD = 14  # pixels from one blob to the next
STEEPEST = 20.0  # exponents between 1 / STEEPEST and this are believed
MOST = 100.0  # factors between 1 / MOST and this are believed
CLOSE = 0.7  # of eps_max: from there on a search begins at eps_max itself


class Growth(NamedTuple):
    """A curve on double logarithmic axes, in (POINTS,) points; NaN where margins do not grow."""

    eps: Tensor  # log of the radii, rising; the last is that of eps_max
    rise: Tensor  # log of the growth of the margins' mean there, relative to that at eps_max
    most: Tensor  # the growth at eps_max, a number; as a factor, so that logits twice as large change no bit

    @classmethod
    def of(cls, network: Network, like: Tensor, eps_max: float, merged: bool, domain: Domain) -> "Growth":
        """That of a network whose inputs are like ``like`` (B, ...), in one bound pass."""
        exponents = torch.linspace(math.log10(RANGE), 0, POINTS, dtype=like.dtype, device=like.device)
        eps = torch.cat([exponents.new_zeros(1), eps_max * 10**exponents])
        x = made_up(like, domain).expand(len(eps), *like.shape[1:]).contiguous()
        y = torch.zeros(len(eps), dtype=torch.int64, device=like.device)
        margins = network.margins(ball(x, eps, domain), y, merged=merged)[:, 1:].mean(1)
        rise = (margins[1:] - margins[0]).cummax(0).values
        return cls(eps[1:].log(), (rise / rise[-1]).log(), rise[-1])

    def guess(self, clean: Tensor) -> Tensor:
        """(B,) radii of samples with clean margins ``clean`` < 0, as far as the curve tells; NaN where it does not.

        eps_max where a radius is to be expected beyond it, or close to it: most such samples are done there.
        """
        wanted = (-clean / self.most).log()
        left, slope = self._piece(self.rise, wanted)
        guess, cap = self.eps[left] + (wanted - self.rise[left]) * slope, self.eps[-1]
        return torch.where(guess > cap + math.log(CLOSE), cap, guess).exp()

    def slope(self, eps: Tensor) -> Tensor:
        """(B,) d log radius / d log margin at radii (B,): one by the exponent."""
        _, slope = self._piece(self.eps, eps.log())
        return torch.where(slope.isfinite() & (slope > 0), slope, 1 / EXPONENT).clamp(1 / STEEPEST, STEEPEST)

    def factor(self, u: Tensor, g: Tensor, clean: Tensor) -> Tensor:
        """(B,) this growth over that of a sample's margin, which at exp(u) is -clean exp(g); 1 where there is none."""
        left, slope = self._piece(self.eps, u)
        factor = self.most / -clean * (self.rise[left] + (u - self.eps[left]) / slope - g).exp()
        return torch.where(factor.isfinite(), factor, 1.0).clamp(1 / MOST, MOST)

    def _piece(self, axis: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Of the lines that (B,) values are on, or closest to: the index of the left end, and the slope."""
        right = torch.searchsorted(axis, value).clamp(1, POINTS - 1)
        left = right - 1
        return left, (self.eps[right] - self.eps[left]) / (self.rise[right] - self.rise[left])


def begin(growth: Growth | None, lower: Tensor, f_lower: Tensor, clean: Tensor, guess: Tensor | None = None) -> Trail:
    """A search before its first evaluation, which is at ``guess``, else where the growth says, else at the cap."""
    if growth is None:
        return Trail.start(lower, f_lower, guess)
    guess = growth.guess(clean) if guess is None else guess
    return Trail.start(lower, f_lower, guess, growth.slope(guess))


def made_up(like: Tensor, domain: Domain) -> Tensor:
    """(1, ...): round blobs of the largest value on the least one, about a fifth of the pixels."""
    low, high = domain or (0.0, 1.0)
    sizes = like.shape[2:] or like.shape[1:]
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in sizes]
    wave = torch.stack(torch.meshgrid(*(torch.cos(2 * math.pi * axis / PERIOD) for axis in axes), indexing="ij")).sum(0)
    blobs = low + (high - low) * (wave > 0.6 * len(sizes) ** 0.5).to(like)
    return blobs.expand(1, *like.shape[1:])
