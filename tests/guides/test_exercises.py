"""Every exercise of the course: untouched it is not solved, typical wrong answers are refused, its solution is right.

The notebooks run here in this process, small and without pictures; nbval runs them as they stand.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go
import pytest
import torch

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SMALL: dict[str, dict[str, Any]] = {  # parameters with which each notebook takes seconds
    "00_start_here": {"epochs": 2, "images": 20},
    "01_certified_radius": {"epochs": 4},
    "02_training": {"budget": "smoke"},
    "03_pareto": {},
    "04_ablations": {"budget": "smoke", "seeds": 1, "iterations": "2"},
    "05_reproduction": {"images": 100},
    "06_beyond_ibp": {},
}
ONLY = {  # cells that exercises build on
    "00_start_here": ("00-02", "00-04", "00-06", "00-08"),
    "03_pareto": ("03-02",),
    "06_beyond_ibp": ("06-02", "06-27"),
}
WRONG: dict[str, tuple[tuple[str, str], ...]] = {  # of each exercise: wrong answers, and words of what they are told
    "00-e1": (
        ("smallest, largest = -5, 11", "blacker than black"),
        ("smallest, largest = 0, 11 / 255", "in grey levels"),
        ("smallest, largest = 0, 8", "8 levels up"),
    ),
    "00-e2": (
        ("def certified_share(radii, eps): return (radii > eps).mean()", "a radius of 0.1 is certified at 0.1"),
        ("def certified_share(radii, eps): return (radii >= eps).mean()", "not correct at eps = 0"),
        ("def certified_share(radii, eps): return (radii >= eps).sum()", "3 at eps = 0.07"),
    ),
    "00-e3": (
        ('answers = dict.fromkeys("abcde", "true")', "c is not true"),
        ('answers = dict.fromkeys("abcde", True)', "'true', 'false' or 'unknown'"),
        ('answers = dict(zip("abcde", ["unknown"] * 5))', "inside of what is proved"),
    ),
    "00-e4": (
        ("def fast_gradient_sign(network, x, y, eps): return x + 2 * eps", "more than eps"),
        ("def fast_gradient_sign(network, x, y, eps): return x + eps", "blacker than black or whiter"),
        ("def fast_gradient_sign(network, x, y, eps): return x[0]", "not that of the images"),
        ("def fast_gradient_sign(network, x, y, eps): return (x + noise).clamp(0, 1)", "no more than random noise"),
        (
            """def fast_gradient_sign(network, x, y, eps):
                image = x.clone().requires_grad_()
                loss = torch.nn.functional.cross_entropy(network(image), y)
                return (x - eps * torch.autograd.grad(loss, image)[0].sign()).clamp(0, 1)""",
            "the wrong direction",
        ),
    ),
    "01-e1": (
        ("def absolute_value(lower, upper): return lower.abs(), upper.abs()", "the lower end is 3"),
        ("def absolute_value(l, u): return torch.minimum(l.abs(), u.abs()), torch.maximum(l.abs(), u.abs())", "to 0"),
        ("def absolute_value(lower, upper): return upper", "two tensors"),
    ),
    "01-e2": (
        ("merged_margin = margin_by_hand", "Eq. (3), not yet merged"),
        ("def merged_margin(model, image, label, eps): return 0.0", "leave its row out"),
        ("def merged_margin(model, image, label, eps): return -model(image).max()", "bounding the difference gives"),
    ),
    "01-e3": (
        ("def scores(r, c, e): return c.mean(), r.mean() / e, (c.mean() * r.mean() / e) ** 0.5", "counts as more"),
        ("def scores(r, c, e): return c.mean(), np.minimum(r, e)[c].mean() / e, 0.5", "over the correct images only"),
        ("def scores(r, c, e): return c.mean(), 0.35, (c.mean() + 0.35) / 2", "square root"),
        ("def scores(r, c, e): return c.sum(), 0.35, 0.5", "4 of the 5"),
    ),
    "01-e4": (
        ("share_that_gains = 120", "is no share"),
        ("share_that_gains = 0.9999", "comparing both radii"),
    ),
    "02-e1": (
        ("def fast_radii(network, x, y, eps): return torch.full((len(y),), eps)", "misclassified images have a box"),
        ("fast_radii = own_radii", "all of eps"),
        ("def fast_radii(network, x, y, eps): return (network(x).argmax(1) == y).float()", "all of eps"),
        ("def fast_radii(network, x, y, eps): return torch.tensor(eps)", "one radius an image"),
    ),
    "02-e2": (
        ("def eps_at(t, clean, ramp, eps_max): return eps_max * t / (clean + ramp)", "at t = 0.5"),
        ("def eps_at(t, clean, ramp, eps_max): return max(0, eps_max * (t - clean) / ramp)", "at t = 9"),
    ),
    "02-e3": (
        ("def acr_of_curve(grid, share): return np.trapezoid(share, grid)", "is the area"),
        ("def acr_of_curve(grid, share): return share[-1]", "made-up radii"),
    ),
    "02-e4": (
        ("def radius_gradient(n, x, y, r): return al.certified_margin(n, x, y, r)", "one number a pixel"),
        (
            """def radius_gradient(network, x, y, radius):
                x = x.requires_grad_()
                return -torch.autograd.grad(al.certified_margin(network, x, y, radius).sum(), x)[0]""",
            "divided by",
        ),
        (
            """def radius_gradient(network, x, y, radius):
                x, radius = x.requires_grad_(), radius.requires_grad_()
                grads = torch.autograd.grad(al.certified_margin(network, x, y, radius).sum(), (x, radius))
                return grads[0] / grads[1][:, None, None, None]""",
            "but for its sign",
        ),
    ),
    "03-e1": (
        ("def on_front(acc, acr): return [a == acc.max() for a in acc]", "Acc 0.8 and ACR 0.3 is on the front"),
        (
            """def on_front(acc, acr):
                return [((acc >= a) & (acr >= r)).sum() == 1 for a, r in zip(acc, acr)]""",
            "its twin does not dominate it",
        ),
        ("def on_front(acc, acr): return [True]", "1 values for 6 networks"),
    ),
    "03-e2": (
        ("def acr_at(accuracy, first, second): return (first[1] + second[1]) / 2", "at accuracy 0.6"),
        ("def acr_at(a, f, s): return f[1] if a - f[0] < s[0] - a else s[1]", "at accuracy 0.65"),
    ),
    "03-e3": (
        ("mean, standard_error, half = 1.2, 0.024, 0.1", "the mean is 1.2"),
        ("mean, standard_error, half = ratios.mean(), ratios.std() / 3**0.5, 0.1", "ddof=0"),
        ("mean, standard_error, half = ratios.mean(), ratios.std(ddof=1), 0.1", "the spread of the seeds"),
        ("mean, standard_error, half = ratios.mean(), ratios.std(ddof=1) / 3**0.5, 1.96 * 0.02406", "4.303"),
    ),
    "04-e1": (
        ("def next_eps(z, e0, f0, e1, f1): return e1 - f1 * (e1 - e0) / (f1 - f0)", "without logarithms"),
        (
            "def next_eps(zero, eps_first, first, eps_second, second): return (eps_first + eps_second) / 2",
            "it leads to",
        ),
    ),
    "04-e2": (
        ("times_closer = 1e9", "the errors:"),
        (
            """times_closer = (secant.set_index("iterations") / errors.set_index("iterations"))["mean"][4]""",
            "the other way round",
        ),
    ),
    "04-e3": (
        ("difference, standard_error = -0.28, 0.1", "less kappa 0"),
        ("difference, standard_error = 0.28, (0.13**2 + 0.24**2) ** 0.5", "two single runs"),
        ("difference, standard_error = 0.28, (0.13 + 0.24) / 7**0.5", "their squares do"),
        ("difference, standard_error = 0.28, (0.13**2 + 0.24**2) ** 0.5 / 7", "it is sqrt"),
    ),
    "05-e1": (
        ("def two_arts(a, b): return (a * b).mean() ** 0.5, ((a * b) ** 0.5).mean()", "not their product"),
        ("def two_arts(a, b): return ((a * b) ** 0.5).mean(), (a.mean() * b.mean()) ** 0.5", "other way round"),
        ("def two_arts(a, b): return a.mean() * b.mean(), ((a * b) ** 0.5).mean()", "the root of both means"),
        ("def two_arts(a, b): return (a.mean() * b.mean()) ** 0.5, 0.5", "the mean of the four ART"),
    ),
    "05-e2": (
        ("seeds_needed = 3", "with 3 seeds the standard error is 0.075"),
        ("seeds_needed = 10", "one fewer"),
        ("seeds_needed = 6.76", "no number of networks"),
    ),
    "05-e3": (
        ("flattery = np.random.default_rng(0).normal(0, 0.2, (10000, 60)).max()", "the best of all draws"),
        ("flattery = 0.2", "average the largest"),
    ),
    "06-e1": (
        ("def line_above(lower, upper): return 1.0, -lower", "not the lowest one"),
        ("def line_above(lower, upper): return upper / (upper - lower), 0.0", "no bound"),
    ),
    "06-e2": (
        ("claimed = al.certified_radius(*rounding_example()[:3], 0.5).radius", "2^24 gives"),
        ("claimed = 0.05", "the sound radius"),
        ("claimed = 0.3", "another"),
    ),
    "06-e3": (
        ("def shares_at(c, a, e): return (c > e).float().mean(), (a <= e).float().mean(), 0.25", "do not add up to 1"),
        (
            """def shares_at(c, a, e):
                proved, broken = (c >= e).double().mean(), (a < e).double().mean()
                return proved, broken, 1 - proved - broken""",
            "at eps = 0, for",
        ),
    ),
}


def code_of(cell: nbformat.NotebookNode) -> str:
    """The code block of a folded solution."""
    (code,) = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
    return code


@pytest.mark.parametrize("name", SMALL)
def test_untouched_wrong_and_right(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACERTLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(go.Figure, "show", lambda figure, *_, **__: figure.to_plotly_json())
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    by_id, namespace, solved = {cell.id: cell for cell in cells}, {"__name__": "__main__"}, []

    def run(source: str) -> str:
        capsys.readouterr()
        exec(compile(source, f"<{name}>", "exec"), namespace)
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    try:
        for cell in cells:
            tags = cell.metadata.get("tags", ())
            if cell.cell_type != "code" or "skip-execution" in tags:
                continue
            if not {"parameters", "attempt", "check"} & set(tags) and cell.id not in ONLY.get(name, (cell.id,)):
                continue
            run(cell.source)
            if "parameters" in tags:
                namespace |= SMALL[name]
            if "attempt" not in tags:
                continue
            exercise = cell.id[:-1]
            check, solution = by_id[f"{exercise}c"].source, code_of(by_id[f"{exercise}s"])
            assert run(check) == "Not solved yet.\n", exercise
            for wrong, told in WRONG[exercise]:
                run(wrong)
                said = run(check)
                assert said.startswith("Not yet right: ") and told in said, (exercise, wrong, said)
            run(solution)
            said = run(check)
            assert said.startswith("Right."), (exercise, said)
            run(cell.source)  # what follows runs unsolved, as the reader of the whole notebook has it
            solved.append(exercise)
    finally:
        torch.set_num_threads(threads)
    assert solved == [cell.id for cell in cells if "exercise" in cell.metadata.get("tags", ())]
    assert set(solved) == {exercise for exercise in WRONG if exercise[:2] == name[:2]}
