"""Any number of samples in the memory given, and less where that is not there."""

import pytest
import torch

from acertlab.bounds.box import Box
from acertlab.bounds.ibp import IntervalNetwork
from acertlab.radius.certified import certified_radius
from acertlab.radius.search import RadiusStatus
from tests.helpers.networks import Trained


def test_chunks_keep_to_the_memory_given(digits_net: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of any bound pass, times eight, stays within ``memory``; the radii are the same."""
    x, y = digits_net.x.repeat(4, 1, 1, 1), digits_net.y.repeat(4)
    rows: list[int] = []
    margins = IntervalNetwork.margins
    monkeypatch.setattr(
        IntervalNetwork, "margins", lambda self, box, y, **kw: rows.append(len(y)) or margins(self, box, y, **kw)
    )
    whole = certified_radius(digits_net.model, x, y, 0.2)
    assert max(rows) >= 0.9 * (whole.status == RadiusStatus.CONVERGED).sum()  # all in one chunk
    rows.clear()
    small = certified_radius(digits_net.model, x, y, 0.2, memory=2**21)
    assert 64 < max(rows) < 500  # 8 channels of 4 x 4 or less, linear 50: kilobytes a sample
    assert torch.equal(small.radius, whole.radius)


def test_out_of_memory_halves_the_chunk_and_goes_on(digits_net: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = digits_net.model, digits_net.x[:300], digits_net.y[:300]
    expected = certified_radius(model, x, y, 0.2)
    margins = IntervalNetwork.margins

    def limited(self: IntervalNetwork, box: Box, y: torch.Tensor, **settings: bool) -> torch.Tensor:
        if len(y) > 96:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return margins(self, box, y, **settings)

    monkeypatch.setattr(IntervalNetwork, "margins", limited)
    found = certified_radius(model, x, y, 0.2)
    assert torch.equal(found.radius, expected.radius) and torch.equal(found.upper, expected.upper)

    def broken(self: IntervalNetwork, box: Box, y: torch.Tensor, **settings: bool) -> torch.Tensor:
        if len(y) > 96:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return margins(self, box, y, **settings)

    monkeypatch.setattr(IntervalNetwork, "margins", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # only running out of memory is tried again
        certified_radius(model, x, y, 0.2)
