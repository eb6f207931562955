"""What is looked at before a sweep starts on this machine: the calling script, devices, datasets, earlier jobs' images.

torch is loaded where it is needed only.
"""

import ast
import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

from acertlab.sweep.spec import Sweep, is_training


def check_main_guard() -> None:
    """Refuse a script that calls this outside of `if __name__ == "__main__":` before its workers run it, too."""
    script, frame = getattr(sys.modules["__main__"], "__file__", None) or "", inspect.currentframe()
    while frame and (frame.f_code.co_name != "<module>" or frame.f_code.co_filename != script):
        frame = frame.f_back
    if frame is None or not os.path.isfile(script):
        return  # a notebook, a prompt, a program of Windows
    tree = ast.parse(Path(script).read_bytes())
    at = [node for node in tree.body if node.lineno <= frame.f_lineno <= (node.end_lineno or 0)]
    if not any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in at):
        raise RuntimeError(
            f'{script}, line {frame.f_lineno}: a sweep on this machine belongs below `if __name__ == "__main__":`, '
            "since each of its workers runs the script anew"
        )


def visible_gpus() -> list[str]:
    """The GPUs or MIG slices that this process may use, as CUDA_VISIBLE_DEVICES names them; torch is not asked.

    That variable's, up to the first entry that is no device, as CUDA reads it; where it is not set, those that
    ``nvidia-smi -L`` lists: of a GPU that is cut into slices the slices.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            return []
        names = re.findall(r"\(UUID: ([^)]+)\)", listed)
        # slices follow their GPU
        return [a for a, b in pairwise([*names, ""]) if a.startswith("MIG-") or not b.startswith("MIG-")]
    return list(takewhile(re.compile(r"\d+$|GPU-|MIG-").match, map(str.strip, visible.split(","))))


def check_this_machine(sweep: Sweep) -> None:
    """The datasets and devices are there: found out once, before anything starts. Downloads what is missing.

    ValueError where a device is not there, or a job was begun on other images; FileNotFoundError without a dataset.
    """
    trainings = [job for job in sweep.jobs if is_training(job.parameters)]
    if not trainings:
        return
    from acertlab.data.datasets import PARTS, load_dataset
    from acertlab.data.files import SHIPPED, read_json
    from acertlab.data.run import other_parts
    from acertlab.training.parameters import config_from_parameters

    asked = [job.parameters for job in trainings if not job.done]
    for device in {parameters.get("device", "auto") for parameters in asked}:
        config_from_parameters(asked[0] | {"device": device}).torch_device()
    for dataset, root in {(parameters["dataset"], parameters.get("data_root", "")) for parameters in asked}:
        load_dataset(dataset, root=root or None)

    @cache
    def digests(dataset: str, root: str, val_fraction: float, *counts: int) -> dict[str, str]:
        try:
            data = load_dataset(dataset, root=root or None, val_fraction=val_fraction, download=False)
        except FileNotFoundError:  # it was asked for above, unless all is done
            return {}
        cut = {f"{p}_{k}": getattr(data, f"{p}_{k}")[:n] for p, n in zip(PARTS, counts, strict=True) for k in "xy"}
        return replace(data, **cut).digests()

    for job in trainings:
        path = job.folder / "config.json"
        config = read_json(path) if path.is_file() else {}
        if "data" not in config:  # of version 0.1.0, or not of `train`
            continue
        where = job.parameters["dataset"], job.parameters.get("data_root", "")
        counts = [config[f"n_{part}"] for part in PARTS]
        ours = job.notebook.is_relative_to(SHIPPED)  # another notebook may choose its validation images otherwise
        known = {"data": {part: config["data"][part] for part in (PARTS if ours else ("test",))}}
        others = min((other_parts(known, digests(*where, share, *counts)) for share in (0.1, 0.0)), key=len)
        if others:
            raise ValueError(f"{job.folder}: {where[0]} has {' and '.join(others)} here; give another out")
