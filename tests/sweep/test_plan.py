"""What a sweep says before anything is loaded: how many jobs, where, and how long the finished ones took."""

import json
from pathlib import Path

import pytest

from acertlab.sweep.plan import read_plan
from acertlab.sweep.spec import read_spec

SPEC = {"dataset": "digits", "grid": {"method": ["fast-ibp", "acert"], "kappa": [0, 0.5]}}


def test_the_sentence_tells_what_is_done_and_how_long_the_rest_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    begins = f"the specification: 4 jobs of 02_training.ipynb, in {tmp_path}"
    plan = read_plan(SPEC, tmp_path, show=True)
    assert plan.sentence() == f"{begins}, none of them done" and not list(tmp_path.iterdir())
    assert capsys.readouterr().out == f"{plan.sentence()}; checking each ...\n"
    for job, seconds in zip(read_spec(plan).jobs, (100.0, 200.0), strict=False):
        job.folder.mkdir(parents=True)
        (job.folder / "result.json").write_text(json.dumps({"seconds": seconds, "test_seconds": 50.0}))
    assert plan.sentence() == (
        f"{begins}, where 2 are done, in 3.3 min each; for 2 more that makes 6.7 min, shared by the workers"
    )
    for job in read_spec(plan).jobs[2:]:
        job.folder.mkdir(parents=True)
        (job.folder / "result.json").write_text("{half a fi")
    assert "where 2 are done" in plan.sentence()
