"""The calculation of what a step costs: its FLOPs follow from the network's sizes."""

import pytest
import torch

from acertlab._memory import PeakMemory
from acertlab.radius.search import POINTS
from acertlab.training.cost.gpu_steps import seconds_of_random_step
from acertlab.training.cost.roofline import GPUS, STEPS, Cost, begun, count, random_batch, step_config
from acertlab.training.loop.step import train_step
from tests.benchmarks.roofline import bytes_of_a_step, table

WIDTH, LINEAR, BATCH = 64, 512, 128  # of smaller batches a search pads its passes to 32

PASSES = {  # after three whole ones two of half the batch, and then of a quarter, a tile; with a history after two
    "ACERT, 2 iterations": 3,
    "ACERT": 3 + 2 / 2 + 6 / 4,
    "ACERT, from the radii of an epoch ago": 2 + 2 / 2 + 6 / 4,
}


@pytest.fixture(scope="module")
def found():
    return table("cifar10", BATCH)


def macs_of_cnn7(size: int = 32, channels: int = 3, classes: int = 10) -> int:
    """Multiplications of one forward pass of one image, from Table 3."""
    half = size // 2
    convolutions = [
        (channels, WIDTH, size),
        (WIDTH, WIDTH, size),
        (WIDTH, 2 * WIDTH, half),
        *[(2 * WIDTH, 2 * WIDTH, half)] * 2,
    ]
    total = sum(9 * inputs * outputs * side**2 for inputs, outputs, side in convolutions)
    return total + 2 * WIDTH * half**2 * LINEAR + LINEAR * classes


def test_flops_are_those_of_table_3(found) -> None:
    forward = 2 * BATCH * macs_of_cnn7()
    first = 2 * BATCH * 9 * 3 * WIDTH * 32**2  # the input needs no gradient
    assert found.GFLOP["Standard"] * 1e9 == pytest.approx(3 * forward - first, rel=1e-6)
    # centre and radius both ways, beside the clean pass; the merged head's table of pairs is the small rest
    assert found.GFLOP["FastIBP"] / found.GFLOP["Standard"] == pytest.approx(3, rel=0.01)
    for name, passes in PASSES.items():
        more = (found.GFLOP[name] - found.GFLOP["FastIBP"]) * 1e9
        assert more / (passes + (1 + POINTS) / BATCH) == pytest.approx(2 * forward, rel=0.01)  # a few rows of growth


def test_time_is_at_least_that_of_the_arithmetic(found) -> None:
    assert list(found.index) == list(STEPS)
    assert (found["at least, ms"] >= found["arithmetic alone, ms"]).all()
    assert found["/ FastIBP's"]["FastIBP"] == 1
    assert found["at least, ms"].drop("ACERT-fast").is_monotonic_increasing


def test_tf32_speeds_up_products_and_moves_no_byte_less(found) -> None:
    full, tf32 = GPUS["H100"].float32, GPUS["H100"].tf32
    faster = table("cifar10", BATCH, "tf32")
    assert (faster[["GFLOP", "GB"]] == found[["GFLOP", "GB"]]).all(axis=None)
    ratio = found["arithmetic alone, ms"] / faster["arithmetic alone, ms"]
    assert ratio.tolist() == pytest.approx([tf32 / full] * len(found))
    moved = 1e12 * found.GB / GPUS["H100"].bandwidth
    assert (faster["at least, ms"] >= moved).all() and (faster["at least, ms"] < 1.2 * moved).all()  # traffic decides
    at_h200 = table("cifar10", BATCH, "tf32", "H200")["at least, ms"]
    assert (at_h200 < faster["at least, ms"]).all()


def test_traffic_of_one_operation() -> None:
    a, b = torch.ones(50, 20, device="meta"), torch.ones(20, 30, device="meta")
    with Cost() as cost:
        (a.view(20, 50).t() @ b).relu()
    assert cost.flops == 2 * 50 * 20 * 30
    assert cost.traffic == 4 * (50 * 20 + 20 * 30 + 50 * 30) + 4 * 2 * 50 * 30  # views move nothing


def test_a_step_holds_what_grows_with_its_batch() -> None:
    """On the meta device, where 4096 images of CNN7 of width 64 take no memory."""
    a_row, config = bytes_of_a_step("FastIBP", "cifar10"), step_config("FastIBP", "cifar10")
    state, peaks = begun(config, "meta"), []
    for batch in (2048, 4096):
        with PeakMemory() as seen:
            train_step(state, config, *random_batch(config, "meta", batch))
        peaks.append(seen.peak)
    assert (peaks[1] - peaks[0]) / 2048 == pytest.approx(a_row, rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_longer_than_the_calculation() -> None:
    gpu = next((gpu for name, gpu in GPUS.items() if name in torch.cuda.get_device_name()), GPUS["H200"])
    for name in STEPS:
        config = step_config(name, "cifar10")
        least = count(begun(config, "meta"), config, 128, gpu).seconds
        assert seconds_of_random_step(begun(config, "cuda"), config, 128) > least
