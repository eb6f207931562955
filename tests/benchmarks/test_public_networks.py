"""The table of public networks: one that goes through, one that does not, and their lines."""

from pathlib import Path

import pytest

from tests.benchmarks.public_networks import Row, names, run_one, table


def test_a_network_that_goes_through() -> None:
    row = run_one("torchvision", "squeezenet1_1")
    assert row.loaded and row.equal and row.certified and not row.broken and not row.error
    assert row.capture_s is not None and 0 < row.capture_s < row.seconds


def test_what_fails_is_a_line_with_its_reason(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    assert ("ONNX", str(broken)) in set(names(tmp_path))
    row = run_one("ONNX", str(broken))
    assert not row.loaded and not row.certified and "broken.onnx" in row.error
    good = Row("torchvision", "one", loaded=True, capture_s=0.5, equal=True, certified=True, radii=2)
    lines = table([good, Row("torchvision", "two", loaded=True, broken=1), row]).splitlines()
    assert lines[2] == "| torchvision | 2 | 2 | 1 (0.5) | 1 | 1 | 1 | 1 |"
    assert lines[3] == "| ONNX | 1 | 0 | 0 (-) | 0 | 0 | 0 | 0 |"
    assert lines[-1].startswith("- ONNX broken.onnx: ")
