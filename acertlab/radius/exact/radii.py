"""Robust radii from both sides by mixed-integer programs: classes in order of promise, each below the best so far.

The lower end is the solver's own bound: certified only as far as its tolerances allow, and so is its status called. The
upper end is a witness that the model itself was seen to classify otherwise.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from acertlab._validation import Within, check
from acertlab.bounds.box import Domain, DomainLike, ball, distance, per_sample, rounded
from acertlab.bounds.checks import allowed_gap, check_samples, full_precision
from acertlab.bounds.graph.comparison import check_chunk, points
from acertlab.bounds.margin import captured, clean_logits, clean_margin
from acertlab.radius.attack import AttackResult, attacked_radius
from acertlab.radius.exact.program import Ball, BoxProgram
from acertlab.radius.exact.relu_network import ReluNetwork, as_relu_network
from acertlab.radius.search import SECONDS, RadiusResult, RadiusStatus, checked_limit

ROWS = 12  # points on which the rewritten network must agree with the model
STRETCHES = (0.0, *np.logspace(-7, -2, 21))  # by which a solver's point is moved further from x


@dataclass(frozen=True)
class ExactSettings:
    """How the programs are solved."""

    domain: DomainLike = (0.0, 1.0)
    time_limit: float = 60.0  # seconds a sample, attack excluded
    gap: float = 1e-4  # relative width of the bracket at which the solver may stop
    steps: int = 6  # these three: of the attack that gives the first upper bound
    restarts: int = 4
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        check("time_limit", self.time_limit, SECONDS)
        check("gap", self.gap, Within(0, 1, open_high=True))


def exact_radii(
    model: nn.Module, x: Tensor, y: Tensor, eps_max: float | str, settings: ExactSettings
) -> tuple[RadiusResult, AttackResult]:
    """`acertlab.exact_radius` as its two ends."""
    cap = checked_limit(eps_max, settings.domain)
    model, x, y = check_samples(model, x, y, settings.domain)
    x, y = x.detach(), y.long()
    with torch.no_grad(), full_precision(x.device):
        graph = captured(model, x, settings.domain, cap)
        network = as_relu_network(model, graph)
        check_chunk(model, graph, x, settings.domain, cap)
        if len(x):
            at = points(x, settings.domain, cap, ROWS)
            theirs = clean_logits(model, at)
            ours = torch.as_tensor(network.logits(at.double().flatten(1).cpu().numpy())).to(theirs)
            if (gap := (ours - theirs).abs().max()) > allowed_gap(theirs):
                raise ValueError(f"model: its logits differ by {gap:.3g} from those of its form with ReLUs alone")
    effort = {"steps": settings.steps, "restarts": settings.restarts, "seed": settings.seed}
    found = attacked_radius(model, x, y, cap, domain=settings.domain, progress=settings.progress, **effort)
    attack = replace(found, radius=found.radius.clone(), x_adv=found.x_adv.clone(), margin=found.margin.clone())
    lower, statuses = torch.zeros_like(attack.radius), torch.zeros_like(y, dtype=torch.int8)
    programs = torch.ones_like(y)
    with torch.no_grad(), full_precision(x.device):
        clean = clean_margin(clean_logits(model, x), y)
        for i in tqdm(range(len(x)), desc="exact radii", unit="sample", disable=not settings.progress):
            if clean[i] < 0 and clean[i].isfinite():
                best = min(cap, float(attack.radius[i]))
                search = _Search(model, network, x[i : i + 1], y[i : i + 1], best, attack, i, settings)
                search.run()
                lower[i] = rounded(torch.tensor(search.lower, dtype=torch.float64), x.dtype, -torch.inf)
                statuses[i], programs[i] = int(search.status), 1 + search.programs
            else:
                statuses[i] = int(RadiusStatus.MISCLASSIFIED if clean[i].isfinite() else RadiusStatus.NONFINITE)
    margin = torch.where(lower > 0, torch.nan, clean)
    return RadiusResult(lower, margin, attack.radius.clone(), statuses, programs), attack


@dataclass
class _Search:
    """The search of one sample; what it finds closer than the attack did goes into ``attack`` at ``row``."""

    model: nn.Module
    network: ReluNetwork
    x: Tensor
    y: Tensor
    best: float
    attack: AttackResult
    row: int
    settings: ExactSettings
    status = RadiusStatus.AT_EPS_MAX
    programs = 0

    def __post_init__(self) -> None:
        self.lower = self.best

    def run(self) -> None:
        end = time.perf_counter() + self.settings.time_limit
        program = self._program()
        waiting = program.promising()
        if waiting:
            self.status = RadiusStatus.SOLVED
        while waiting:
            target = waiting.pop(0)
            solution = program.solve(target, end - time.perf_counter(), self.settings.gap)
            self.programs += 1
            self.lower = min(self.lower, solution.lower)
            if not solution.finished:
                self.status = RadiusStatus.TIME_LIMIT
            if solution.point is not None and self._closer(solution.point) and waiting:
                program = self._program()
                waiting = [target for target in program.promising() if target in waiting]

    def _program(self) -> BoxProgram:
        flat, domain = self.x.double().flatten().cpu(), Domain.of(self.settings.domain)
        ends = zip(domain.ends(self.x), (-torch.inf, torch.inf, 1.0), strict=True)
        given = (torch.as_tensor(none if end is None else end, dtype=torch.float64).cpu() for end, none in ends)
        low, high, scale = (end.expand(self.x.shape).flatten().numpy() for end in given)
        return BoxProgram(self.network, Ball.around(flat.numpy(), self.best, low, high, scale), int(self.y))

    def _closer(self, point: np.ndarray) -> bool:
        """Takes the solver's point as witness, moved outwards by what the model's own rounding asks for."""
        x, dtype = self.x, self.x.dtype
        change = torch.as_tensor(point, device=x.device).view_as(x) - x.double()
        stretch = 1 + torch.tensor(STRETCHES, dtype=torch.float64, device=x.device)
        reach = (distance(x.double() + change, x.double(), self.settings.domain) * stretch).to(dtype)
        box = ball(x.expand(len(stretch), *x.shape[1:]).contiguous(), reach, self.settings.domain)
        moved = (x.double() + change * per_sample(stretch, x)).to(dtype)
        moved = torch.maximum(box.lower, torch.minimum(box.upper, moved))
        margins = clean_margin(clean_logits(self.model, moved), self.y.expand(len(moved)))
        away = distance(moved, x.expand_as(moved), self.settings.domain)
        wrong = (margins >= 0) & (away < self.attack.radius[self.row]) & (away <= self.best)
        if not wrong.any():
            return False
        first = torch.where(wrong, away, torch.inf).argmin()
        self.attack.radius[self.row], self.attack.margin[self.row] = away[first], margins[first]
        self.attack.x_adv[self.row] = moved[first]
        self.best = float(away[first])
        return True
