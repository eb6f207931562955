"""What one mean hides, on made-up radii: a crossing that is known, shares counted one by one."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from acertlab.analysis import method_table
from acertlab.analysis.acr_breakdown import EASIEST, acr_breakdown, cap_sensitivity, order_sentence
from acertlab.analysis.bootstrap import draw
from acertlab.radius import metrics
from acertlab.training.methods.catalogue import METHODS
from tests.helpers.synthetic_runs import CAP, EPS_MAX, in_memory, synthetic_radii

RADII = st.lists(st.one_of(st.just(0.0), st.floats(2**-10, CAP, width=32), st.just(CAP)), min_size=10, max_size=60)


class TestCapSensitivity:
    def test_a_crossing_that_is_known(self) -> None:
        """All images certified to 0.1: ART = sqrt(0.1 / cap) beyond. 70 % certified to the end: ART = 0.7."""
        flat, few = np.full(400, 0.1), np.where(np.arange(400) < 280, CAP, 0.0)
        samples = in_memory({("acert", 0.0, 0): flat, ("fast-ibp", 0.0, 0): few})
        found = cap_sensitivity(samples, draw(samples, 200))
        (crossing,) = found.crossings
        assert crossing.eps_max == pytest.approx(0.1 / 0.7**2, abs=1e-6)
        assert (crossing.below, crossing.above) == ("acert", "fast-ibp") and crossing.share > 0.95
        assert found.sentence.startswith("Below eps_max = 0.2041 ACERT has the higher tuned ART than FastIBP")
        acert = found.table[found.table.method == "acert"]
        np.testing.assert_allclose(acert.art, np.sqrt(np.minimum(1, 0.1 / acert.eps_max)), rtol=1e-6)
        assert ((found.table.low - 1e-6 <= found.table.art) & (found.table.art <= found.table.high + 1e-6)).all()

    def test_every_method_at_its_best_kappa(self) -> None:
        samples = in_memory(synthetic_radii({"fast-ibp": 1.0, "acert": 1.3}, n=100))
        found = cap_sensitivity(samples, draw(samples, 20), [0.05, EPS_MAX])
        table = method_table.tuned_table(samples.runs)
        for method in samples.methods:
            row = found.table[(found.table.method == method) & (found.table.eps_max == EPS_MAX)].iloc[0]
            best = table[table.method == f"{METHODS[method].label} †"].iloc[0]
            assert (row.kappa, 100 * row.art) == (best.kappa, pytest.approx(best.ART, rel=1e-5))
        assert found.crossings == () and "is the same at every eps_max from 0.05 to 0.2" in found.sentence

    def test_one_method(self) -> None:
        samples = in_memory(synthetic_radii({"acert": 1.0}, n=50))
        assert "no order to change" in cap_sensitivity(samples, draw(samples, 20)).sentence


class TestACRBreakdown:
    @settings(max_examples=25, deadline=None)
    @given(RADII)
    def test_the_shares_one_by_one(self, radii: list) -> None:
        values = np.array(radii, dtype=np.float32).astype(float)
        samples = in_memory({("acert", 0.0, 0): values})
        found = acr_breakdown(samples, draw(samples, 20), "acert", 0.0, EPS_MAX, [0.0, 0.1, EPS_MAX])
        assert found.acr == pytest.approx(metrics.acr(values, EPS_MAX), rel=1e-6)
        assert found.zero == np.mean(values == 0) and found.full == np.mean(values >= np.float32(EPS_MAX))
        assert found.zero + found.inside + found.full == pytest.approx(1)
        jumps = np.unique([0.0, *np.minimum(values, EPS_MAX), EPS_MAX])
        shares = metrics.certified_accuracy(values, (jumps[1:] + jumps[:-1]) / 2)  # constant between jumps
        assert np.sum(np.diff(jumps) * shares) / EPS_MAX == pytest.approx(found.acr, rel=1e-5, abs=1e-9)
        for eps, share in found.certified.items():
            assert share.estimate == metrics.certified_accuracy(values, [eps])[0]
        sizes = np.bincount(samples.label)
        weighted = sum(found.per_class[k] * sizes[k] for k in found.per_class) / len(values)
        assert weighted == pytest.approx(found.acr, rel=1e-6)
        easiest = sorted(np.minimum(values, EPS_MAX), reverse=True)[: round(EASIEST * len(values))]
        if values.any():
            expected = sum(easiest) / np.minimum(values, EPS_MAX).sum()
            assert found.easy == pytest.approx(expected, rel=1e-5)
            assert found.concentration[-1] == pytest.approx(1) and found.concentration[0] == 0
            assert np.all(np.diff(found.concentration) >= -1e-12)

    def test_seeds_are_pooled_and_their_spread_is_in_the_intervals(self) -> None:
        radii = {("acert", 0.0, k): np.where(np.arange(200) < 100 + 10 * k, 0.1, 0.0) for k in range(4)}
        samples = in_memory(radii)
        found = acr_breakdown(samples, draw(samples, 400), "acert", 0.0, EPS_MAX, [0.1])
        assert len(found.radii) == 800 and found.certified[0.1].estimate == pytest.approx(0.575)
        alone = in_memory({("acert", 0.0, 0): radii["acert", 0.0, 0]})
        one = acr_breakdown(alone, draw(alone, 400), "acert", 0.0, EPS_MAX, [0.1])
        assert one.certified[0.1].half == pytest.approx(1.96 * (0.25 / 200) ** 0.5, rel=0.15)  # a share's own
        assert found.certified[0.1].half > one.certified[0.1].half
        assert "certified 57.5 ±" in found.sentence and "the easiest 20 % of images make" in found.sentence

    def test_refusals(self) -> None:
        samples = in_memory(synthetic_radii({"acert": 1.0}, n=20))
        with pytest.raises(ValueError, match="there is no run of 'acert' at kappa = 0.3"):
            acr_breakdown(samples, draw(samples, 20), "acert", 0.3, EPS_MAX, [])
        with pytest.raises(ValueError, match=r"eps_grid: \[0.3\] outside \[0, 0.25\]"):
            acr_breakdown(samples, draw(samples, 20), "acert", 0.5, EPS_MAX, [0.1, 0.3])


def test_an_order_that_a_fixed_eps_turns_round() -> None:
    """60 % certified to the end make a larger ACR than all certified to 0.1, where they are fewer."""
    deep, wide = np.where(np.arange(400) < 240, CAP, 0.0), np.full(400, 0.1)
    samples = in_memory({("acert", 0.0, 0): deep, ("fast-ibp", 0.0, 0): wide})
    drawn = draw(samples, 100)
    both = [acr_breakdown(samples, drawn, method, 0.0, EPS_MAX, [0.05, EPS_MAX]) for method in samples.methods]
    said = order_sentence(both)
    assert said.startswith("The order by ACR (ACERT, kappa = 0 > FastIBP, kappa = 0) hides this: at eps = 0.05 FastIBP")
    assert "0.2" not in said
    assert "nowhere reversed" in order_sentence([both[1], both[1]]) and "One method" in order_sentence(both[:1])
