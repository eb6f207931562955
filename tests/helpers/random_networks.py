"""Random networks made of every operator that has a rule: one maker an operator, and how they are put together.

A maker takes a `random.Random` and a batch of hidden values (B, ...), in float64, and returns what is done with such
values: a function or a module that calls its operator. Weights and constants are drawn when it is made.
"""

import math
import operator
from collections.abc import Callable
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from acertlab.bounds.box import Box
from acertlab.bounds.rules.dispatch import rule
from acertlab.bounds.rules.operators import aten
from acertlab.bounds.rules.shapes import ORDER

Work = Callable[[Tensor], Tensor]
Maker = Callable[[Random, Tensor], Work]
CLASSES = 3
LARGEST = 48  # numbers a sample, between two operators
IMAGES, SIGNALS, VOLUMES = ((2, 4, 4), (4, 3, 3), (2, 3, 5)), ((2, 8), (4, 5)), ((2, 2, 3, 3), (1, 3, 4, 3))


# ---- shapes --------------------------------------------------------------------------------------------------------


def shaped(h: Tensor, shape: tuple[int, ...]) -> Tensor:
    """As many of the values as a shape takes; repeated where there are too few."""
    flat, size = h.flatten(1), math.prod(shape)
    if flat.shape[1] < size:
        flat = flat.repeat(1, -(-size // flat.shape[1]))
    return (flat[:, :size] if flat.shape[1] > size else flat).reshape(-1, *shape)


def image(r: Random, h: Tensor, kinds: tuple[tuple[int, ...], ...] = IMAGES) -> tuple[int, ...]:
    """The shape in which an operator on images takes the values: their own where it will do."""
    own = tuple(h.shape[1:])
    fits = len(own) == len(kinds[0]) and min(own[1:]) >= 3 and own[0] % 2 == 0
    return own if fits else r.choice(kinds)


def on(shapes: tuple[tuple[int, ...], ...], make: Maker) -> Maker:
    """The maker of an operator that takes images, signals or volumes only."""

    def maker(r: Random, h: Tensor) -> Work:
        shape = image(r, h, shapes)
        work = make(r, shaped(h, shape))
        return Reshaped(shape, work)

    return maker


class Reshaped(nn.Module):
    def __init__(self, shape: tuple[int, ...], work: Work) -> None:
        super().__init__()
        self.shape, self.work = shape, work

    def forward(self, x: Tensor) -> Tensor:
        return self.work(x if x.shape[1:] == self.shape else shaped(x, self.shape))


def anywhere(r: Random, h: Tensor) -> int:
    """A dimension other than the batch's, from either end."""
    d = r.randrange(1, h.dim())
    return d - h.dim() if r.random() < 0.5 else d


def positive(r: Random) -> Work:
    """Values that are positive everywhere; rarely, in parts of a box only."""
    return r.choice([lambda h: h.abs() + 0.3, lambda h: h * h + 0.5, lambda h: h.exp(), lambda h: h + 2])


def other(r: Random, h: Tensor) -> Callable[[Tensor], Any]:
    """A second operand: of the input as well, the same value, a tensor or a number."""
    constant = torch.randn(h.shape[1:], dtype=h.dtype)
    number = r.choice([-1.7, 0.3, 2, -3])
    return r.choice(
        [
            lambda h: h.flip(1),
            lambda h: h,
            lambda h: h.relu(),
            lambda h: constant[..., :1],
            lambda h: constant,
            lambda h: number,
        ]
    )


def tensor_other(r: Random, h: Tensor) -> Callable[[Tensor], Tensor]:
    constant = torch.randn(h.shape[1:], dtype=h.dtype)
    return r.choice([lambda h: h.flip(1), lambda h: h, lambda h: h * 0.5 - 0.1, lambda h: constant])


# ---- makers --------------------------------------------------------------------------------------------------------


def plain(op: Any, *choices: tuple) -> Maker:
    """An operator on each number, with one of a few lists of further arguments."""

    def maker(r: Random, h: Tensor) -> Work:
        args = r.choice(choices or ((),))
        return lambda h: op(h, *args)

    return maker


def drawn(op: Any, draw: Callable[[Random, Tensor], tuple]) -> Maker:
    """An operator with arguments that are drawn for the shape at hand."""

    def maker(r: Random, h: Tensor) -> Work:
        args = draw(r, h)
        return lambda h: op(h, *args)

    return maker


def of_positive(op: Any, *args: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        before = positive(r)
        return lambda h: op(before(h), *args)

    return maker


def with_other(op: Any, operand: Any = other) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        second = operand(r, h)
        alpha = r.choice([{}, {}, {"alpha": r.choice([2, -0.5])}]) if op in (aten.add, aten.sub, aten.rsub) else {}
        return lambda h: op(h, second(h), **alpha)

    return maker


def scaled(op: Any, *factors: float) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        factor = r.choice(factors)
        return lambda h: op(factor * h)

    return maker


def gelu(r: Random, h: Tensor) -> Work:
    kind = r.choice(["none", "tanh"])
    return lambda h: aten.gelu(2 * h, approximate=kind)


def diagonal(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        k = r.choice([0, 1, -1])
        return lambda h: op(shaped(h, (3, 4)), k)

    return maker


def quotient(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        before, constant = positive(r), torch.rand(h.shape[1:], dtype=h.dtype) + 0.2
        second = r.choice([before, lambda h: -before(h.flip(1)), lambda h: constant, lambda h: -1.5])
        return r.choice([lambda h: op(h, second(h)), lambda h: op(torch.ones_like(h), before(h))])

    return maker


def _pad(r: Random, h: Tensor) -> list[int]:
    most = min(3, *h.shape[2:])  # reflection takes fewer than there are
    return [r.randrange(most) for _ in range(2 * (h.dim() - 2))]


def _pooling(r: Random, h: Tensor) -> tuple:
    kernel, stride = min(r.choice([2, 3]), *h.shape[2:]), r.choice([1, 2])
    return [kernel] * (h.dim() - 2), [stride] * (h.dim() - 2), [r.choice([0, 1])] * (h.dim() - 2)


def max_pool(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        args = (*_pooling(r, h), [1] * (h.dim() - 2), r.choice([True, False]))
        first = op in (aten.max_pool2d_with_indices, aten.max_pool3d_with_indices)
        return lambda h: op(h, *args)[0] if first else op(h, *args)

    return maker


def average_pool(op: Any) -> Maker:
    def draw(r: Random, h: Tensor) -> tuple:
        more = (r.choice([None, 3]),) if h.dim() > 3 else ()
        return (*_pooling(r, h), r.choice([True, False]), r.choice([True, False]), *more)

    return drawn(op, draw)


def adaptive(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        size = [r.choice([1, 2]) for _ in range(h.dim() - 2)]
        first = "max" in op.__name__
        return lambda h: op(h, size)[0] if first else op(h, size)

    return maker


def upsample(op: Any, *flags: Any) -> Maker:
    def draw(r: Random, h: Tensor) -> tuple:
        aligned = (r.choice([True, False]),) if "linear" in op.__name__ or "cubic" in op.__name__ else ()
        return [r.choice([2, 3, 5]) for _ in range(h.dim() - 2)], *aligned

    return drawn(op, draw)


def convolution(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        d, inputs = h.dim() - 2, h.shape[1]
        turned = "transpose" in op.__name__ or (op in (aten.convolution, aten._convolution) and r.random() < 0.4)
        groups = r.choice([1, 1, 2]) if inputs % 2 == 0 else 1
        outputs, side = 2 * r.choice([1, 2]), r.choice([1, 2, 3])
        shape = (inputs, outputs // groups) if turned else (outputs, inputs // groups)
        weight = nn.Parameter(torch.randn(*shape, *[side] * d, dtype=h.dtype) / math.sqrt(inputs * side**d))
        bias = nn.Parameter(torch.randn(outputs, dtype=h.dtype)) if r.random() < 0.7 else None
        stride, padding = [r.choice([1, 2])] * d, [r.choice([0, 1])] * d
        if side == 1 and turned:
            padding = [0] * d
        if op is aten._convolution_mode:
            args: tuple = ([1] * d, r.choice(["same", "valid"]), [1] * d, groups)
        elif op is aten.convolution:
            args = (stride, padding, [1] * d, turned, [0] * d, groups)
        elif op is aten._convolution:
            args = (stride, padding, [1] * d, turned, [0] * d, groups, False, False, True, True)
        elif turned:
            args = (stride, padding, [s - 1 for s in stride], groups, [1] * d)
        else:
            dilation = r.choice([1, 1, 2]) if side < 3 else 1
            wide = dilation * (side - 1) >= min(h.shape[2:])  # wider than a small volume
            args = (stride, [1] * d if wide else padding, [dilation] * d, groups)
        return Weighted(lambda h, w, b: op(h, w, b, *args), weight, bias)

    return maker


class Weighted(nn.Module):
    def __init__(self, work: Callable[..., Tensor], weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.work, self.weight, self.bias = work, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return self.work(x, self.weight, self.bias)


def linear(r: Random, h: Tensor) -> Work:
    width = r.choice([3, 5, 8])
    if r.random() < 0.2:  # a weight that depends on the input
        ones = torch.ones(3, h[0].flatten()[:4].numel(), dtype=h.dtype)
        return lambda h: aten.linear(h.flatten(1)[:, None, :4], h.flatten(1)[0, :4].sigmoid() * 0 + ones)
    weight = nn.Parameter(torch.randn(width, h.shape[-1], dtype=h.dtype) / math.sqrt(h.shape[-1]))
    return Weighted(aten.linear, weight, nn.Parameter(torch.randn(width, dtype=h.dtype)))


def product(op: Any) -> Maker:
    """A matrix product with a constant on either side, or of two activations."""

    def maker(r: Random, h: Tensor) -> Work:
        w = torch.randn(h.shape[-1], 4, dtype=h.dtype) / math.sqrt(h.shape[-1])
        if op is aten.mm:
            return lambda h: op(h.flatten(1)[:, : len(w)], w)
        if op is aten.addmm:
            bias, beta, alpha = torch.randn(4, dtype=h.dtype), r.choice([1, 2]), r.choice([1, -0.5])
            return lambda h: op(bias, h.flatten(1)[:, : len(w)], w, beta=beta, alpha=alpha)
        if op is aten.baddbmm:
            beta, alpha = r.choice([1, -2]), r.choice([1, 0.5])
            return lambda h: op(m := shaped(h, (2, 2)), m.relu(), m.flip(1), beta=beta, alpha=alpha)
        if op is aten.bmm:
            return lambda h: op(shaped(h, (2, 3)), shaped(h.flip(1), (3, 2)))
        left = torch.randn(3, 2, dtype=h.dtype)
        return r.choice(
            [
                lambda h: op(shaped(h, (2, 3)), shaped(h.flip(1), (3, 2))),
                lambda h: op(left, shaped(h, (2, 5))),
                lambda h: op(shaped(h, (4, len(w))), w),
                lambda h: op(shaped(h, (2, 3, 2)), shaped(h.relu(), (2, 2, 3))),
            ]
        )

    return maker


def of_three(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        second, third = tensor_other(r, h), tensor_other(r, h)
        if op is aten.lerp:
            weight = r.choice([-0.4, 0.3, 1.5, torch.randn(h.shape[1:], dtype=h.dtype)])
            return lambda h: op(h, second(h).expand_as(h), weight)
        value, order = r.choice([1, -0.7]), r.sample([0, 1, 2], 3)
        safe = (lambda h: third(h).abs() + 0.3) if op is aten.addcdiv else third

        def work(h: Tensor) -> Tensor:
            if op is aten.addcdiv:
                return op(second(h), h, safe(h), value=value)
            three = h, second(h), third(h)
            return op(*(three[i] for i in order), value=value)

        return work

    return maker


def ordered(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        d, low = anywhere(r, h), r.choice([True, False])
        if op is aten.sort:
            return lambda h: op(h, d, low)[0]
        if op is aten.topk:
            return lambda h: op(h, max(1, h.shape[d] - 1), d, low)[0]
        if op is aten.kthvalue:
            return lambda h: op(h, h.shape[d] // 2 + 1, d)[0]
        if op is aten.aminmax:
            return lambda h: op(h, dim=d, keepdim=True)[low] + h
        if op is aten.logcumsumexp:
            return lambda h: op(h, d)
        return lambda h: op(h, d)[0]  # median, cummin

    return maker


def written(op: Any) -> Maker:
    """Values put, or added, at constant places."""

    def maker(r: Random, h: Tensor) -> Work:
        n = h[0].numel()
        at = torch.tensor(r.sample(range(n), max(1, n // 2)))
        twice, kind = torch.tensor([r.randrange(n) for _ in range(n)]), r.choice(["sum", "mean", "amax", "amin"])
        several = r.choice([True, False])

        def work(h: Tensor) -> Tensor:
            flat = h.flatten(1)
            new, rows = flat[:, : len(at)] * -1.5, flat.shape[0]
            if op is aten.index_copy:
                return op(flat, 1, at, new)
            if op is aten.index_add:
                return op(flat, 1, twice, flat.relu(), alpha=0.5)
            if op is aten.index_put:
                return op(flat, [None, twice], flat - 1, True) if several else op(flat, [None, at], new)
            if op is aten.scatter:
                return op(flat, 1, at.expand(rows, -1), new if several else 0.4)
            if op is aten.scatter_add:
                return op(flat, 1, twice.expand(rows, -1), flat.relu())
            return op(flat, 1, twice.expand(rows, -1), flat - 0.2, kind, include_self=several)

        return work

    return maker


def grid_sample(r: Random, h: Tensor) -> Work:
    grid = torch.rand(1, 3, 3, 2, dtype=h.dtype) * 2.6 - 1.3
    mode, padding, aligned = r.choice([0, 1]), r.choice([0, 1, 2]), r.choice([True, False])
    return lambda h: aten.grid_sampler(h, grid.expand(h.shape[0], -1, -1, -1), mode, padding, aligned)


def einsum(r: Random, h: Tensor) -> Work:
    w = torch.randn(3, 4, dtype=h.dtype)
    return r.choice(
        [
            lambda h: aten.einsum("bij,jk->bik", [shaped(h, (2, 3)), w]),
            lambda h: aten.einsum("bi,bj->bij", [shaped(h, (3,)), shaped(h.relu(), (4,))]),
            lambda h: aten.einsum("bij,bkj->bik", [shaped(h, (2, 3)), shaped(h.flip(1), (3, 3))]),
            lambda h: aten.einsum("bii,bij->bj", [shaped(h, (3, 3)), shaped(h.flip(1), (3, 2))]),
            lambda h: aten.einsum("biji->bj", [shaped(h, (2, 3, 2))]),
        ]
    )


def norm(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        last = list(h.shape[-1:]) if h.dim() < 3 or r.random() < 0.5 else list(h.shape[-2:])
        eps = r.choice([1e-5, 1e-2])
        if op in (aten.group_norm, aten.instance_norm):
            last = [h.shape[1]]
        weight = r.choice([None, nn.Parameter(torch.randn(last, dtype=h.dtype))])
        bias = None if weight is None else nn.Parameter(torch.randn(last, dtype=h.dtype))
        if op is aten.group_norm:
            groups = r.choice([g for g in (1, 2, h.shape[1]) if h.shape[1] % g == 0])
            return Weighted(lambda h, w, b: op(h, groups, w, b, eps), weight, bias)
        if op is aten.instance_norm:
            return Weighted(lambda h, w, b: op(h, w, b, None, None, True, 0.1, eps, False), weight, bias)
        if op is aten.rms_norm:
            return Weighted(lambda h, w, b: op(h, last, w, eps), weight)
        return Weighted(lambda h, w, b: op(h, last, w, b, eps), weight, bias)

    return maker


def attention(r: Random, h: Tensor) -> Work:
    fixed = torch.randn(1, 3, 2, dtype=h.dtype)
    mask = r.choice([None, torch.tensor([True, False, True]), torch.randn(3, 3, dtype=h.dtype)])
    options = {"scale": r.choice([None, 0.5])} | ({"is_causal": True} if mask is None and r.random() < 0.5 else {})
    if mask is not None:
        options["attn_mask"] = mask.expand(3, 3)

    def work(h: Tensor) -> Tensor:
        one = fixed.expand(h.shape[0], -1, -1)
        q = one if "q" in still else shaped(h, (3, 2))
        k = one if "k" in still else shaped(h.flip(1), (3, 2))
        return aten.scaled_dot_product_attention(q, k, one if "v" in still else shaped(h.relu(), (3, 2)), **options)

    still = r.choice(["", "", "qk", "v", "k"])  # what does not depend on the input
    return work


def softmax(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        d = anywhere(r, h)
        return (lambda h: op(3 * h, d, False)) if op.__name__.startswith("_") else (lambda h: op(3 * h, d))

    return maker


def along(op: Any) -> Maker:
    """A reduction, with or without the dimension that it takes away."""

    def maker(r: Random, h: Tensor) -> Work:
        d, keep = anywhere(r, h), r.choice([True, False])
        if op in (aten.max, aten.min):
            second = tensor_other(r, h)
            return r.choice([lambda h: op(h, d, keep)[0], lambda h: op(h, second(h))])
        if op is aten.linalg_vector_norm:
            order = r.choice([1, 2, 3, math.inf])
            return lambda h: op(h, order, [d], keep)
        if op in (aten.var, aten.std):
            correction = 0 if h.shape[d] == 1 else r.choice([0, 1])
            return lambda h: op(h, [d], correction=correction, keepdim=keep) + 0.1
        if op is aten.cummax:
            return lambda h: op(h, d)[0]
        if op is aten.cumsum:
            return lambda h: op(h, d)
        return lambda h: op(h, [d], keep)

    return maker


def in_parts(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        if op is aten.split_with_sizes:
            first = r.randrange(1, h.shape[1]) if h.shape[1] > 1 else 1
            sizes = [first, h.shape[1] - first] if h.shape[1] > 1 else [1]
            return lambda h: op(h, sizes, 1)[-1]
        if op is aten.unbind:
            return lambda h: op(h, 1)[0] if h.dim() > 2 else torch.stack(op(h, 1)[::2], 1)
        size = r.choice([1, 2])
        return lambda h: torch.cat([part * (i + 1) for i, part in enumerate(op(h, size, 1))], 1)

    return maker


def joined(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        second = tensor_other(r, h)
        return lambda h: op([h, second(h).expand_as(h)], 1)

    return maker


def _as_shape(r: Random, h: Tensor) -> tuple:
    n = math.prod(h.shape[1:])
    half = next(k for k in (4, 3, 2, 1) if n % k == 0)
    return ([-1, n // half, half],)


def _permutation(r: Random, h: Tensor) -> tuple:
    rest = [*range(1, h.dim())]
    r.shuffle(rest)
    return ([0, *rest],)


def copied(r: Random, h: Tensor) -> Work:
    second = tensor_other(r, h)
    return lambda h: h.clone().copy_(second(h))


def scattered(op: Any) -> Maker:
    def maker(r: Random, h: Tensor) -> Work:
        at = r.randrange(h.shape[1])
        if op is aten.select_scatter:
            return lambda h: op(h, h.select(1, 0) * -2, 1, at)
        if op is aten.slice_scatter:
            return lambda h: op(h, h[:, at : at + 1].relu() - 1, 1, at, at + 1)
        return lambda h: op(m := shaped(h, (3, 3)), m[:, 0] * 2, 0, 1, 2)

    return maker


def picked(op: Any) -> Maker:
    """Selections by constant indices."""

    def maker(r: Random, h: Tensor) -> Work:
        n = h.shape[1]
        at = torch.tensor([r.randrange(n) for _ in range(r.choice([1, 3]))])
        mask = torch.tensor([i % 2 == 0 for i in range(n)])
        if op in (aten.index, aten._unsafe_index):
            return lambda h: op(h, [None, at])
        if op is aten.index_select:
            return lambda h: op(h, 1, at)
        if op is aten.gather:
            return lambda h: op(v := h.flatten(1), 1, at.expand(v.shape[0], -1))
        if op is aten.masked_fill:
            spread = mask.view(-1, *[1] * (h.dim() - 2))
            return lambda h: op(h, spread, -0.4)
        second = other(r, h)
        spread = mask.view(-1, *[1] * (h.dim() - 2))
        return lambda h: op(spread, h, second(h))

    return maker


def new_tensor(op: Any) -> Maker:
    """What only the shape decides, beside values."""

    def maker(r: Random, h: Tensor) -> Work:
        name = op.__name__
        if name in ("sym_size", "sym_stride", "sym_numel"):
            return {
                "sym_size": lambda h: h.new_ones(aten.sym_size(h, 0), 1).view(-1, *[1] * (h.dim() - 1)) * h,
                "sym_numel": lambda h: h.reshape(aten.sym_numel(h) // h[0].numel(), -1),
                "sym_stride": lambda h: h.flatten(1) * aten.sym_stride(h.contiguous(), 1),
            }[name]
        args = ([h.shape[1]],) if name.startswith("new_") else ()
        value = (0.7,) if name.endswith("full") or name.startswith("full") else ()
        blank = "empty" in name  # its values are whatever was in memory

        def work(h: Tensor) -> Tensor:
            made = op(h, *args, *value)
            made = aten.zeros_like(made) if blank else made
            return h + (made.view(-1, *[1] * (h.dim() - 2)) if args else made)

        return work

    return maker


class OwnLayer(nn.Module):
    """A layer with a rule of its own, registered below; it stays one operator."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return x**self.power if x.sum() < math.inf else x


@rule.register(OwnLayer)
def _of_own_layer(layer: OwnLayer, box: Box) -> Box:
    return Box(box.lower**layer.power, box.upper**layer.power)  # of odd powers, which rise everywhere


def batch_norm(r: Random, h: Tensor) -> Work:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[h.dim()]
    layer = kind(h.shape[1], affine=r.choice([True, True, False])).to(h.dtype)
    nn.init.normal_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.1, 2.0)
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer.eval()


def made_weights(r: Random, h: Tensor) -> Work:
    """A layer whose weight is computed at each call, as hooks or as parametrisations do."""
    make = r.choice(
        [
            *(nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm, parametrizations.orthogonal),
            *(parametrizations.spectral_norm,),
        ]
    )
    layer = nn.Conv2d(h.shape[1], 3, 2, padding=1) if h.dim() == 4 else nn.Linear(h.shape[-1], 4)
    return make(layer.to(h.dtype)).eval()


def in_place(r: Random, h: Tensor) -> Work:
    """Changes a view of a value, and uses what it views."""
    view = r.choice(
        [
            *(lambda h: h, lambda h: h[:, :1], lambda h: h.flatten(1), lambda h: h[..., 0]),
            *(lambda h: h.detach(), lambda h: h.view(h.shape[0], -1)),
        ]
    )
    change = r.choice(
        [
            *(lambda v: v.relu_(), lambda v: v.mul_(-1.5), lambda v: F.leaky_relu(v, 0.3, inplace=True)),
            *(lambda v: v.clamp_(-0.3, 0.4), lambda v: v.add_(v.flip(-1)), lambda v: v.copy_(v.clone() * 0.5)),
        ]
    )
    fresh = r.choice([lambda h: h + 0, lambda h: h * 1.5, lambda h: h.neg(), lambda h: h.clone()])

    def work(h: Tensor) -> Tensor:
        own = fresh(h)
        change(view(own))
        return own

    return work


def normalised(r: Random, h: Tensor) -> Work:
    shape = (1, h.shape[1], *[1] * (h.dim() - 2))
    mean, std = torch.randn(shape, dtype=h.dtype), torch.rand(shape, dtype=h.dtype) + 0.2
    return lambda h: (h - mean) / std


BEFORE: dict[Any, Maker] = {  # what no single operator is
    "batch_norm": batch_norm,
    "own layer": lambda r, h: OwnLayer(r.choice([1, 3])),
    "made weights": made_weights,
    "in place": in_place,
    "Normalize": normalised,
    "softsign": plain(F.softsign),
    "tanhshrink": plain(F.tanhshrink),
    "by hand": lambda r, h: lambda h: (h - h.mean(-1, True)) / (0.1 + h.var(-1, correction=0, keepdim=True)).sqrt(),
    "normalize": lambda r, h: lambda h: F.normalize(h, dim=1),
}
MAKERS: dict[Any, Maker] = {
    **{
        op: plain(op)
        for op in (
            *(aten.relu, aten.relu6, aten.tanh, aten.sigmoid, aten.hardsigmoid, aten.selu, aten.log_sigmoid, aten.exp),
            *(aten.expm1, aten.erf, aten.erfc, aten.atan, aten.sign, aten.asinh, aten.sinh, aten.cosh, aten.floor),
            *(aten.ceil, aten.round, aten.trunc, aten.silu, aten.mish, aten.hardswish, aten.abs, aten.absolute),
            *(aten.square, aten.neg, aten.negative, aten.detach, aten.exp2),
        )
    },
    **{op: scaled(op, 1, 4, 9) for op in (aten.sin, aten.cos)},
    aten.hardtanh: plain(aten.hardtanh, (), (-0.3, 0.5)),
    aten.clamp: plain(aten.clamp, (-0.2, 0.6), (None, 0.3), (0.1,)),
    aten.clip: plain(aten.clip, (-0.2, 0.6), (None, 0.3), (0.1,)),
    aten.clamp_min: plain(aten.clamp_min, (-0.1,)),
    aten.clamp_max: plain(aten.clamp_max, (0.4,)),
    aten.softshrink: plain(aten.softshrink, (), (0.2,)),
    aten.hardshrink: plain(aten.hardshrink, (), (0.2,)),
    aten.threshold: plain(aten.threshold, (0.1, 0.05), (0.2, -3.0)),
    aten.leaky_relu: plain(aten.leaky_relu, (), (0.4,), (3.0,)),
    aten.celu: plain(aten.celu, (), (0.4,)),
    aten.elu: plain(aten.elu, (), (0.5,), (1.5, 1.2, 0.7)),
    aten.softplus: plain(aten.softplus, (), (2.0, 1.0), (0.5, 0.2)),
    aten.gelu: gelu,
    aten.pow: lambda r, h: r.choice(
        [
            *(plain(aten.pow, (2,), (3,), (4,), (1,), (0,)), of_positive(aten.pow, r.choice([1.5, -0.75, -1, -2]))),
            of_positive(aten.pow, torch.randn(h.shape[1:], dtype=h.dtype)),
        ]
    )(r, h),
    **{
        op: lambda r, h, op=op: Weighted(
            lambda h, w, b: op(h, w),
            nn.Parameter(torch.randn(r.choice([1, h.shape[1]]) if op is aten.prelu else 1, dtype=h.dtype)),
        )
        for op in (aten.prelu, aten._prelu_kernel)
    },
    **{
        op: of_positive(op)
        for op in (aten.sqrt, aten.rsqrt, aten.reciprocal, aten.log, aten.log2, aten.log10, aten.log1p)
    },
    **{op: with_other(op) for op in (aten.add, aten.sub, aten.subtract, aten.rsub, aten.mul, aten.multiply)},
    **{op: with_other(op, tensor_other) for op in (aten.maximum, aten.minimum, aten.logaddexp)},
    **{op: quotient(op) for op in (aten.div, aten.divide, aten.true_divide)},
    **{op: product(op) for op in (aten.matmul, aten.mm, aten.bmm, aten.addmm, aten.baddbmm)},
    **{op: of_three(op) for op in (aten.addcmul, aten.addcdiv, aten.lerp)},
    **{op: ordered(op) for op in (*ORDER, aten.logcumsumexp)},
    **{
        op: written(op)
        for op in (
            *(aten.index_copy, aten.index_add, aten.index_put, aten.scatter, aten.scatter_add, aten.scatter_reduce),
        )
    },
    aten.grid_sampler: on(IMAGES, grid_sample),
    aten.col2im: on(
        IMAGES,
        lambda r, h: lambda h: aten.col2im(F.unfold(h, 2, padding=1), h.shape[2:], [2, 2], [1, 1], [1, 1], [1, 1]),
    ),
    **{aten.linear: linear, aten.einsum: einsum, aten.scaled_dot_product_attention: attention},
    **{op: softmax(op) for op in (aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax)},
    **{op: norm(op) for op in (aten.layer_norm, aten.rms_norm)},
    **{op: on(IMAGES, norm(op)) for op in (aten.group_norm, aten.instance_norm)},
    **{
        op: along(op)
        for op in (
            *(aten.mean, aten.sum, aten.cumsum, aten.cummax, aten.amax, aten.amin, aten.max, aten.min, aten.logsumexp),
            *(aten.linalg_vector_norm, aten.var, aten.std),
        )
    },
    **{
        op: on(shapes, convolution(op))
        for shapes, ops in (
            (SIGNALS, (aten.conv1d, aten.conv_transpose1d)),
            (IMAGES, (aten.conv2d, aten.conv_transpose2d, aten.convolution, aten._convolution, aten._convolution_mode)),
            (VOLUMES, (aten.conv3d, aten.conv_transpose3d)),
        )
        for op in ops
    },
    **{
        op: on(shapes, make(op))
        for d, shapes in ((1, SIGNALS), (2, IMAGES), (3, VOLUMES))
        for make, names in (
            (max_pool, ("max_pool{}d", *(["max_pool{}d_with_indices"] if d > 1 else []))),
            (average_pool, ("avg_pool{}d",)),
            (adaptive, ("adaptive_max_pool{}d", "adaptive_avg_pool{}d", *(["_adaptive_avg_pool{}d"] if d > 1 else []))),
            (upsample, ("upsample_nearest{}d", "_upsample_nearest_exact{}d")),
            (lambda op: drawn(op, lambda r, h: (_pad(r, h),)), ("reflection_pad{}d", "replication_pad{}d")),
        )
        for op in (getattr(aten, name.format(d)) for name in names)
    },
    aten.upsample_linear1d: on(SIGNALS, upsample(aten.upsample_linear1d)),
    aten.upsample_bilinear2d: on(IMAGES, upsample(aten.upsample_bilinear2d)),
    aten._upsample_bilinear2d_aa: on(IMAGES, upsample(aten._upsample_bilinear2d_aa)),
    aten.upsample_bicubic2d: on(IMAGES, upsample(aten.upsample_bicubic2d)),
    aten._upsample_bicubic2d_aa: on(IMAGES, upsample(aten._upsample_bicubic2d_aa)),
    aten.upsample_trilinear3d: on(VOLUMES, upsample(aten.upsample_trilinear3d)),
    aten.pad: on(
        IMAGES,
        drawn(aten.pad, lambda r, h: (_pad(r, h), r.choice(["constant", "reflect", "replicate", "circular"]))),
    ),
    aten.constant_pad_nd: on(IMAGES, drawn(aten.constant_pad_nd, lambda r, h: (_pad(r, h), r.choice([0, -0.7])))),
    aten.pixel_shuffle: lambda r, h: lambda h: aten.pixel_shuffle(shaped(h, (4, 2, 3)), 2),
    aten.pixel_unshuffle: lambda r, h: lambda h: aten.pixel_unshuffle(shaped(h, (2, 4, 4)), 2),
    aten.channel_shuffle: on(IMAGES, plain(aten.channel_shuffle, (2,))),
    aten.im2col: on(IMAGES, plain(aten.im2col, ([2, 2], [1, 1], [1, 1], [1, 1]), ([3, 3], [1, 1], [0, 0], [2, 2]))),
    aten.reshape: drawn(aten.reshape, _as_shape),
    **{
        op: drawn(lambda h, *args, op=op: op(h.contiguous(), *args), _as_shape) for op in (aten.view, aten._unsafe_view)
    },
    aten.view_as: lambda r, h: lambda h: aten.view_as(h.contiguous(), h.flatten(1)),
    aten.reshape_as: lambda r, h: lambda h: aten.reshape_as(h, h.flatten(1)),
    aten.flatten: plain(aten.flatten, (1,)),
    aten.unflatten: lambda r, h: lambda h: aten.unflatten(h, 1, [h.shape[1], 1]),
    aten.squeeze: lambda r, h: lambda h: aten.squeeze(h.unsqueeze(2), 2),
    aten.unsqueeze: plain(aten.unsqueeze, (1,), (-1,)),
    aten.permute: drawn(aten.permute, _permutation),
    aten.transpose: drawn(aten.transpose, lambda r, h: (1, anywhere(r, h))),
    aten.swapaxes: drawn(aten.swapaxes, lambda r, h: (1, anywhere(r, h))),
    aten.movedim: drawn(aten.movedim, lambda r, h: (1, anywhere(r, h))),
    aten.t: lambda r, h: lambda h: aten.t(aten.t(h.flatten(1)) * 2),
    aten.numpy_T: lambda r, h: lambda h: aten.numpy_T(aten.numpy_T(h.flatten(1)) - 1),
    aten.mT: lambda r, h: lambda h: aten.mT(shaped(h, (3, 4))),
    aten.expand: lambda r, h: lambda h: aten.expand(h.flatten(1)[:, :1], [-1, 5]),
    aten.expand_as: lambda r, h: lambda h: aten.expand_as(h[:, :1], h),
    aten.repeat: lambda r, h: lambda h: aten.repeat(h.flatten(1), [1, 2]),
    aten.tile: lambda r, h: lambda h: aten.tile(h.flatten(1), [1, 2]),
    aten.flip: drawn(aten.flip, lambda r, h: ([anywhere(r, h)],)),
    aten.roll: drawn(aten.roll, lambda r, h: ([r.choice([1, -2])], [anywhere(r, h)])),
    aten.narrow: drawn(aten.narrow, lambda r, h: (1, 0, max(1, h.shape[1] // 2))),
    aten.slice: drawn(aten.slice, lambda r, h: (anywhere(r, h), 0, 9, r.choice([1, 2]))),
    aten.select: lambda r, h: lambda h: aten.select(h.unsqueeze(1), 1, 0),
    aten.diagonal: diagonal(lambda h, k: aten.diagonal(h, k, 1, 2)),
    aten.unfold: drawn(aten.unfold, lambda r, h: (d := anywhere(r, h), min(2, h.shape[d]), 1)),
    **{op: diagonal(op) for op in (aten.triu, aten.tril)},
    **{op: in_parts(op) for op in (aten.chunk, aten.split, aten.split_with_sizes, aten.unbind)},
    operator.getitem: in_parts(aten.chunk),
    **{op: joined(op) for op in (aten.cat, aten.concat, aten.stack)},
    **{op: scattered(op) for op in (aten.slice_scatter, aten.select_scatter, aten.diagonal_scatter)},
    aten.copy: copied,
    aten.glu: lambda r, h: lambda h: aten.glu(h.flatten(1).repeat(1, 2), 1),
    aten.fill: lambda r, h: lambda h: aten.fill(h, 0.3) + h,
    **{
        op: picked(op)
        for op in (aten.index, aten._unsafe_index, aten.index_select, aten.gather, aten.masked_fill, aten.where)
    },
    aten.type_as: lambda r, h: lambda h: aten.type_as(h, h.flatten(1)),
    aten.to: lambda r, h: lambda h: aten.to(h, torch.float32).to(h.dtype),
    aten._to_copy: lambda r, h: lambda h: aten._to_copy(aten._to_copy(h, dtype=torch.float32), dtype=h.dtype),
    **{
        op: new_tensor(op)
        for op in (
            *(aten.sym_size, aten.sym_numel, aten.sym_stride, aten.zeros_like, aten.ones_like, aten.full_like),
            *(aten.empty_like, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty),
        )
    },
}


# ---- networks ------------------------------------------------------------------------------------------------------


def _of_samples(h: Tensor) -> Tensor:
    return h.unsqueeze(1) if h.dim() == 1 else h


class Stage(nn.Module):
    """Work, and how it is called; its result is scaled to about 1 and kept small."""

    def __init__(self, work: Work, around: str, h: Tensor) -> None:
        super().__init__()
        self.work, self.around, self.scale = work, around, 1.0
        with torch.no_grad():
            most = float(self(h.clone()).abs().nan_to_num(posinf=0.0).amax())
        self.scale = 1 / most if most > 1e-3 else 1.0

    def forward(self, h: Tensor) -> Tensor:
        out = _of_samples(self.work(h))
        if self.around == "twice":
            out = _of_samples(self.work(shaped(out, tuple(h.shape[1:]))))
        elif self.around == "residual":
            out = shaped(out, tuple(h.shape[1:])) + h
        elif self.around == "beside":
            out = torch.cat([out.flatten(1), h.flatten(1)], 1)
        out = out * self.scale if self.scale != 1 else out
        return out if out[0].numel() <= LARGEST else shaped(out, (LARGEST,))


AROUND = ("alone", "alone", "twice", "residual", "beside")
HOOKS: dict[str, Callable[[Stage], Any]] = {
    "none": lambda stage: None,
    "pre-hook": lambda stage: stage.register_forward_pre_hook(lambda module, args: (args[0] * 0.7 - 0.1,)),
    "hook": lambda stage: stage.register_forward_hook(lambda module, args, out: out + F.relu(out - 0.2)),
}
INPUTS = ((5,), (2, 6), (1, 4, 4), (2, 3, 3), (1, 2, 3, 3))


class RandomNetwork(nn.Module):
    """Stages of the given operators in turn, and a last layer; in evaluation mode and float64.

    Args:
        operators: keys of `MAKERS` or `BEFORE`.
        seed: of all that is drawn beside.
        simple: without hooks and without anything around the operators.
    """

    def __init__(self, operators: list[Any], seed: int, simple: bool = False) -> None:
        super().__init__()
        r = Random(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.input = r.choice(INPUTS)
            h = torch.rand(3, *self.input, dtype=torch.float64)
            self.stages = nn.Sequential()
            for op in operators:
                maker = (MAKERS | BEFORE)[op]
                stage = Stage(maker(r, h), "alone" if simple else r.choice(AROUND), h)
                if not simple:
                    HOOKS[r.choice(["none", "none", *HOOKS])](stage)
                self.stages.append(stage)
                with torch.no_grad():
                    h = stage(h.clone())
            self.last = nn.Linear(h[0].numel(), CLASSES).to(h.dtype)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.stages(x).flatten(1))
