"""Bounds tighter than IBP, by auto_LiRPA: CROWN-IBP, CROWN and alpha-CROWN.

The only file that imports auto_LiRPA. Works with the published 0.3 and with 0.7.x. Version 0.3 was written for older
numpy and torch and looks up names that are gone; they are put back only where they are missing.

Source: Zhang et al. 2018 (CROWN); Zhang et al. 2020 (CROWN-IBP); Xu et al. 2020 (auto_LiRPA); Xu et al. 2021
(optimised slopes: alpha-CROWN).
"""

import copy
import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from acertlab.bounds.box import Box
from acertlab.bounds.checks import check_mode
from acertlab.bounds.crown.auto_lirpa_compat import _default_dtype, _explained, bounded_module, import_auto_lirpa
from acertlab.bounds.crown.conversion import PlainModule
from acertlab.bounds.crown.relaxations import check_nodes, fit_for_patches
from acertlab.bounds.graph.structure import Graph
from acertlab.bounds.ibp import IntervalNetwork
from acertlab.bounds.rules.batch_invariance import pad

LADDER = ("crown-ibp", "crown", "alpha-crown")  # of auto_LiRPA's bounds, from the cheapest to the tightest
FEW = 1  # samples at once under CROWN, on a CPU: it bounds what is unstable in any of them, so that more change a bound


class AutoLirpaNetwork:
    """A copy of a network prepared for bounds by auto_LiRPA; the counterpart of `acertlab.bounds.ibp.IntervalNetwork`.

    The margins of a bound are the least of its own and of those of all cheaper bounds, from our IBP on; all are valid.
    So alpha-crown <= crown <= crown-ibp <= ibp by construction, and no certificate is lost by asking for a tighter
    bound. Operators whose relaxation we have not tested are refused, see `acertlab.bounds.crown.relaxations`.

    The model, in evaluation mode, (B, ...) -> (B, classes) for any B, is copied. Under "crown-ibp" inner bounds are
    IBP's and the last CROWN's, under "crown" all are CROWN's, and under "alpha-crown" the slopes of the last pass are
    optimised, in so many ``iterations``. ImportError where auto_LiRPA is not installed.
    """

    tile = 1  # no padding: a pass costs what its samples cost
    monotone = False

    def __init__(
        self, model: nn.Module, bound: str = "crown", graph: Graph | None = None, *, iterations: int = 10
    ) -> None:
        if bound not in LADDER:
            raise ValueError(f"bound: {bound!r} is unknown; choose from {', '.join(map(repr, LADDER))}")
        check_mode(model)
        import_auto_lirpa()
        self.bound, self.iterations = bound, iterations
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.network = IntervalNetwork(self.model, graph=graph)
        self.converted: Any = None  # auto_LiRPA's BoundedModule
        self.any_size = True  # whether it serves batches of any size
        self.shape: torch.Size | None = None  # of the samples, or of the batch, that it serves

    def margins(self, box: Box, y: Tensor, *, merged: bool = True) -> Tensor:
        """As `acertlab.bounds.ibp.IntervalNetwork.margins`, but never with a gradient.

        TypeError where auto_LiRPA cannot convert the model, or its bound of one of the operators was not tested.
        """
        with torch.no_grad(), _default_dtype(box.lower.dtype):
            if not len(y):
                return self.model(box.lower.new_zeros(1, *box.lower.shape[1:]))[:0]
            rows = FEW if y.device.type == "cpu" else len(y)
            lower, upper, labels = (pad(t.detach(), self.network.tile) for t in (box.lower, box.upper, y))
            ours = self.network.margins(Box(lower, upper), labels, merged=merged)[: len(y)]
            parts = zip(*(t.detach().split(rows) for t in (box.lower, box.upper, y, ours)), strict=True)
            return torch.cat([self._margins(Box(low, high), labels, merged, ibp) for low, high, labels, ibp in parts])

    def _margins(self, box: Box, y: Tensor, merged: bool, margins: Tensor) -> Tensor:
        with _explained(self.model):
            if self.shape != (box.lower.shape[1:] if self.any_size else box.lower.shape):
                self.converted, self.any_size = _convert(self.model, self.network, box)
                self.shape = box.lower.shape[1:] if self.any_size else box.lower.shape
            problem = _BoundProblem(self.converted, box, y, merged)
            if not (margins.abs() < torch.finfo(margins.dtype).max ** 0.5).all():  # of overflows it makes errors
                return margins.scatter(1, y.unsqueeze(1), 0.0)
            ladder = (problem.crown_ibp, problem.crown, functools.partial(problem.alpha_crown, self.iterations))
            for bound in ladder[: LADDER.index(self.bound) + 1]:
                tighter = bound()
                better = (tighter < margins) & problem.finite  # where it is NaN, the cheaper one stands
                margins = torch.where(better, tighter, margins)
            problem.check(margins, together=self.any_size)
        return margins.scatter(1, y.unsqueeze(1), 0.0)


class _BoundProblem:
    """One batch of boxes, to be bounded by ever tighter methods.

    auto_LiRPA bounds an inner neuron by CROWN if IBP leaves it unstable in *any* sample of the batch. So that this
    makes no difference to the other samples, where it is stable, inner bounds by CROWN are intersected with IBP's: of a
    stable ReLU no more than the signs of its bounds matter. Other activations have all their neurons bounded.
    """

    def __init__(self, converted: Any, box: Box, y: Tensor, merged: bool) -> None:
        lirpa = import_auto_lirpa()
        self.converted, self.merged, self.y = converted, merged, y
        center = box.center.as_subclass(lirpa.BoundedTensor)  # its own constructor fails in a TorchDispatchMode
        center.ptb = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=box.lower, x_U=box.upper)
        self.x = (center,)
        eye = torch.eye(converted.final_shape[-1], dtype=box.lower.dtype, device=box.lower.device)
        rows = eye[y].unsqueeze(1) if merged else 0.0
        self.specification = (eye.unsqueeze(0) - rows).expand(len(y), -1, -1)  # (B, i, class): logit_i (- logit_y)
        self.inner: dict[str, tuple[Tensor, Tensor]] = {}  # a node's name -> bounds of its values
        self.finite: Tensor | bool = True  # all of IBP's; else auto_LiRPA takes sums that hold 0 * inf for 0

    def _bound(self, method: str, **settings: Any) -> Tensor:
        both = not self.merged or method == "IBP"
        lower, upper = self.converted.compute_bounds(
            x=self.x, C=self.specification, method=method, bound_lower=both, **settings
        )
        return upper if self.merged else upper - lower.gather(1, self.y.unsqueeze(1))

    def crown_ibp(self) -> Tensor:
        margins = self._bound("CROWN-IBP")
        self._keep_inner()
        finite = [end.isfinite().all() for ends in self.inner.values() for end in ends]
        self.finite = torch.stack(finite).all() if finite else True
        return margins

    def crown(self) -> Tensor:
        margins = self._bound("CROWN", reference_bounds=self.inner, aux_reference_bounds=self.inner)
        self._keep_inner()
        return margins

    def _keep_inner(self) -> None:
        self.inner = {
            node.name: (node.lower.detach(), node.upper.detach())
            for node in self.converted._modules.values()
            if node.perturbed and node.name != self.converted.final_name
            if all(isinstance(getattr(node, end, None), Tensor) for end in ("lower", "upper"))
        }

    def alpha_crown(self, iterations: int, rate: float = 0.5, decay: float = 0.9, inside: float = 1e-6) -> Tensor:
        """The least margins met while Adam moves the slopes of the last pass; inner bounds stay as CROWN left them.

        Every sample and class has slopes of its own, so the sum of all margins is as good a loss as any, and Adam works
        elementwise: nothing couples the samples.

        auto_LiRPA's own optimiser is of no use here: slopes start at 0 or 1, it clamps them to [0, 1], and
        ``torch.clamp`` has no gradient at its ends (torch 2.14). So they are kept ``inside`` that interval.
        """
        names = inspect.signature(self.converted.compute_bounds).parameters  # of 0.7, or of 0.3
        inner = {"interm_bounds" if "interm_bounds" in names else "intermediate_layer_bounds": self.inner}
        self.converted(self.x[0].ptb.x_L)  # by its last input MaxPool knows how many samples there are
        initialise = getattr(self.converted, "init_alpha", None) or self.converted.init_slope  # 0.7, 0.3
        initialise(self.x, method="backward", c=self.specification, bound_lower=not self.merged, **inner)
        nodes = [n for n in self.converted.optimizable_activations if n.used and n.perturbed]
        slopes = [slope for node in nodes for slope in node.alpha.values()]
        best = torch.full_like(self.specification[..., 0], torch.inf)
        if not slopes:
            return best
        optimizer = torch.optim.Adam(slopes, rate, eps=1e-5)  # by the default of 1e-8 it would follow roundings
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
        for node in nodes:
            node.opt_start()
        for slope in slopes:
            slope.requires_grad_()
        try:
            for step in range(iterations + 1):
                for node in nodes:
                    (getattr(node, "clip_alpha", None) or node.clip_alpha_)()
                    if type(node).__name__ == "BoundRelu":
                        for slope in node.alpha.values():
                            slope.data.clamp_(getattr(node, "leaky_alpha", 0.0) + inside, 1 - inside)
                with torch.set_grad_enabled(step < iterations):
                    margins = self._bound("backward", **inner)
                    best = torch.minimum(best, margins.detach())
                    if step < iterations:
                        optimizer.zero_grad()
                        margins.sum().backward()
                        optimizer.step()
                        schedule.step()
        finally:
            for node in nodes:
                node.opt_end()
                node.alpha = type(node.alpha)()
        return best

    def check(self, margins: Tensor, *, together: bool) -> None:
        """Evaluates the network in four corners of the boxes. Not a proof, but a guard against wrong conversions.

        ``together``: in one pass, which costs a small network hardly more than one corner.
        """
        lower, upper = self.x[0].ptb.x_L, self.x[0].ptb.x_U
        coin = torch.Generator(lower.device).manual_seed(0)
        heads = [torch.rand(lower.shape[1:], generator=coin, device=lower.device) < 0.5 for _ in range(2)]
        corners = torch.stack([lower, upper, *(torch.where(head, lower, upper) for head in heads)])
        for some in corners.split(len(corners) if together else 1):
            logits = self.converted(some.flatten(0, 1)).unflatten(0, some.shape[:2])
            own = logits.gather(2, self.y.expand(len(some), -1).unsqueeze(2))
            pairs: list[Any] = [("the output", logits - own, (None, margins))]
            for name, ends in self.inner.items():
                value = self.converted[name].forward_value
                pairs.append((f"node {name}", value.unflatten(0, (len(some), -1)), ends))
            for what, value, (low, high) in pairs:
                slack = 1e-3 * value.abs().amax(tuple(range(1, value.dim())), keepdim=True) + 1e-6
                if (value > high + slack).any() or (low is not None and (value < low - slack).any()):
                    raise TypeError(f"its bounds of {what} do not hold")


def _convert(model: nn.Module, network: IntervalNetwork, box: Box) -> tuple[Any, bool]:
    """auto_LiRPA's graph of ``model``, and whether it serves batches of any size.

    It is made from the prepared network with each BatchNorm in the layer before it: that keeps the coefficients of a
    convolution compact, which makes CROWN several times faster.

    Traced on one sample, or, where the graph then holds for that size alone (0.3, for `x.view(x.shape[0], -1)`), on as
    many as there are in ``box``. TypeError where forward depends on data, the graph computes something else than the
    model, or has a node of which no bound was tested.
    """
    changed = PlainModule(network).eval()
    version = import_auto_lirpa().__version__
    attempts = ((True, 1, torch.cat([box.lower, box.upper])[-3:]), (False, len(box.lower), box.upper))
    for any_size, traced, probe in attempts:
        blank = torch.zeros_like(box.lower[:traced])
        converted = bounded_module(changed, blank, "patches")
        nodes = list(converted._modules.values())
        if not fit_for_patches(nodes, version):
            converted = bounded_module(changed, blank, "matrix")
        if any(getattr(n, "requires_input_bounds", ()) and type(n).__name__ != "BoundRelu" for n in nodes):
            converted.bound_opts["sparse_intermediate_bounds"] = False
        if _agree(model, converted, probe):
            check_nodes(converted._modules.values(), version)
            return converted, any_size
    raise TypeError("its graph computes something else")


def _agree(model: nn.Module, converted: Any, x: Tensor) -> bool:
    try:
        expected, got = model(x), converted(x)
    except (RuntimeError, IndexError):  # shapes that do not fit
        return False
    slack = float(1e-4 * torch.nan_to_num(expected).abs().max())
    return expected.shape == got.shape and torch.allclose(expected, got, rtol=1e-3, atol=slack, equal_nan=True)
