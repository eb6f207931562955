"""Which public networks go through: torchvision, timm, transformers and ONNX files, one of each family.

    python -m tests.benchmarks.public_networks                       # torchvision, and what else is installed
    python -m tests.benchmarks.public_networks --onnx FOLDER         # and all files below a folder
    python -m tests.benchmarks.public_networks --only swin           # those whose name holds a text, with each error

timm and transformers are no dependencies: ``pip install timm transformers``. Weights are random, from a fixed seed (the
files' own for ONNX). Each network runs in a process of its own, under a limit of time and memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SECONDS, MEMORY = 150, 12 * 2**30  # of one network
SAMPLES, EPS_MAX, STEPS = 2, 0.05, 10
LARGEST = 6 * 2**20  # bytes of an ONNX file
TORCHVISION = {  # and the side of its images, where 32 is too small
    **dict.fromkeys(("resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet", "mnasnet0_5"), 32),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x0_5"), 32),
    **dict.fromkeys(
        ("efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "vgg11", "vgg11_bn"), 32
    ),
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_16"), 32),
    **{"alexnet": 64, "inception_v3": 80, "maxvit_t": 64},
}
TIMM = """
    resnet10t resnetv2_18 resnext26ts seresnet18 legacy_seresnet18 skresnet18 ecaresnet26t res2net50_14w_8s
    resnest14d regnetx_002 regnety_002 densenet121 dla34 dpn48b vgg11 ese_vovnet19b_slim hrnet_w18_small
    hardcorenas_a mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small efficientnet_lite0 tinynet_e
    mixnet_s fbnetc_100 ghostnet_050 lcnet_035 repvgg_a0 repghostnet_050 rexnet_100 selecsls42 nf_resnet26
    eca_nfnet_l0 convnext_atto convnextv2_atto cspdarknet53 darknet17 deit_tiny_patch16_224 vit_tiny_patch16_224
    vit_relpos_small_patch16_224 cait_xxs24_224 crossvit_9_240 coat_lite_tiny convit_tiny levit_128s
    mixer_s32_224 gmlp_ti16_224 resmlp_12_224 pit_ti_224 poolformer_s12 pvt_v2_b0 swin_tiny_patch4_window7_224
    swinv2_tiny_window8_256 twins_svt_small visformer_tiny xcit_nano_12_p16_224 edgenext_xx_small
    efficientformer_l1 fastvit_t8 mobilevit_xxs mobilevitv2_050 mobileone_s0 focalnet_tiny_srf davit_tiny
    tiny_vit_5m_224 repvit_m0_9 starnet_s1 hgnetv2_b0 inception_v4 xception41 eva02_tiny_patch14_224
    beit_base_patch16_224 hiera_tiny_224 mambaout_femto tresnet_m efficientvit_m0
""".split()  # noqa: SIM905
SMALL = {"num_labels": 5, "image_size": 32, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
TOKENS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ResNet": SMALL | {"embedding_size": 8},
    "MobileNetV2": {"num_labels": 5, "image_size": 32, "depth_multiplier": 0.35},
    "RegNet": SMALL | {"embedding_size": 8, "groups_width": 8},
    "ViT": {"num_labels": 5, "image_size": 32} | TOKENS,
    "ConvNext": SMALL,
    "Swin": {
        "num_labels": 5,
        "image_size": 32,
        "embed_dim": 12,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
}


@dataclass
class Row:
    """What one network did; ``radii`` of how many samples are positive, ``broken`` of how many PGD found otherwise."""

    family: str
    name: str
    loaded: bool = False
    capture_s: float | None = None
    equal: bool = False
    certified: bool = False
    radii: int = 0
    broken: int = 0
    seconds: float = 0.0
    error: str = ""


def names(onnx: Path | None) -> Iterator[tuple[str, str]]:
    """Every network as (family, name); those of packages that are not installed are left out."""
    yield from (("torchvision", name) for name in TORCHVISION)
    for package, known in (("timm", TIMM), ("transformers", TRANSFORMERS)):
        try:
            __import__(package)
            yield from ((package, name) for name in known)
        except ImportError:
            print(f"{package} is not installed: left out", file=sys.stderr)
    if onnx is not None:
        files = sorted(path for path in onnx.rglob("*.onnx") if path.stat().st_size <= LARGEST)
        yield from (("ONNX", str(path)) for path in files)


def load(family: str, name: str) -> tuple[Any, tuple[int, ...], Callable[[Any], Any] | None]:
    """The network, the shape of a sample, and another way to its outputs where there is one."""
    import torch

    import acertlab as al

    torch.manual_seed(0)
    if family == "torchvision":
        import torchvision

        side = TORCHVISION[name]
        settings = {"image_size": side} if name.startswith("vit") else {}
        if name in ("vgg11", "vgg11_bn", "googlenet", "inception_v3"):
            settings = {"init_weights": False}
        if name == "maxvit_t":
            model = torchvision.models.MaxVit(
                (side, side), 64, 2, [64, 128, 256, 512], [2, 2, 5, 2], 32, 0.2, num_classes=10
            )
        else:
            model = torchvision.models.get_model(name, num_classes=10, **settings)
        return model.eval(), (3, side, side), None
    if family == "timm":
        import timm

        for settings, side in (({"img_size": 64}, 64), ({}, 64), ({}, None)):
            try:
                model = timm.create_model(name, num_classes=10, **settings).eval()
                side = side or model.default_cfg["input_size"][-1]
                with torch.no_grad():
                    model(torch.rand(1, 3, side, side))
            except Exception:  # too small for it, or no setting of its own
                continue
            return model, (3, side, side), None
        raise ValueError(f"timm's {name} takes none of the sizes")
    if family == "transformers":
        import transformers

        config = getattr(transformers, f"{name}Config")(**TRANSFORMERS[name])
        inner = getattr(transformers, f"{name}ForImageClassification")(config).eval()
        return al.select_output(inner, "logits"), (3, 32, 32), None
    import onnxruntime

    model = al.load_onnx(name)
    session = onnxruntime.InferenceSession(name)
    entry = session.get_inputs()[0]
    given = [d if isinstance(d, int) else 1 for d in entry.shape]
    sample = given[1:] if given[:1] == [1] and len(given) > 1 else given

    def theirs(x: Any) -> Any:
        rows = [session.run(None, {entry.name: row.reshape(given).numpy()})[0].reshape(-1) for row in x]
        return torch.stack([torch.from_numpy(row) for row in rows])

    return model, tuple(sample), theirs


def run_one(family: str, name: str) -> Row:
    row = Row(family, name)
    start = time.perf_counter()
    try:
        _run_one(row)
    except Exception as error:  # any model's own
        row.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def _run_one(row: Row) -> None:
    import torch

    from acertlab.bounds.graph.memory import graph_of
    from acertlab.radius.attack import pgd
    from acertlab.radius.certified import certified_radius

    torch.set_num_threads(1)
    model, shape, theirs = load(row.family, row.name)
    model.requires_grad_(False)
    row.loaded = True
    x = torch.rand(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    graph = graph_of(model, x)
    row.capture_s = round(time.perf_counter() - start, 2)
    with torch.no_grad():
        logits, ours = model(x), graph.run(model, x)
        other = logits if theirs is None else theirs(x)
        y = logits.argmax(1)
    scale = 1 + float(logits.abs().max())
    read = (ours, ours.sigmoid(), ours.softmax(1))  # of ONNX, where a sigmoid or softmax at the end is left away
    alike = any((other - values).abs().max() <= 1e-3 * scale for values in read)
    row.equal = bool((logits - ours).abs().max() <= 1e-5 * scale and alike)
    radius = certified_radius(model, x, y, EPS_MAX, rtol=1e-2).radius
    row.certified, row.radii = True, int((radius > 0).sum())
    if row.radii:
        attacked, _ = pgd(model, x, y, radius, steps=STEPS, restarts=1)
        with torch.no_grad():
            row.broken = int(((model(attacked).argmax(1) != y) & (radius > 0)).sum())


def in_a_process(which: tuple[str, str]) -> Row:
    command = [sys.executable, "-m", "tests.benchmarks.public_networks", "--one", *which]
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # noqa: E731
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, preexec_fn=limit)
        return Row(**json.loads(ran.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Row(*which, error=f"more than {SECONDS} s")
    except (IndexError, json.JSONDecodeError):
        return Row(*which, error=f"ended: {(ran.stderr.strip().splitlines() or ['?'])[-1][:200]}")


def table(rows: list[Row]) -> str:
    """A line a family, and one of each network that did not go through."""
    lines = ["| networks | tried | loaded | captured (median, s) | equal | certified | a radius > 0 | broken by PGD |"]
    lines += ["| --- " * 8 + "|"]
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family]
        times = sorted(row.capture_s for row in own if row.capture_s is not None)
        loaded, equal, certified = (sum(getattr(row, what) for row in own) for what in ("loaded", "equal", "certified"))
        captured = f"{len(times)} ({times[len(times) // 2] if times else '-'})"
        positive, broken = sum(row.radii > 0 for row in own), sum(row.broken > 0 for row in own)
        lines.append(
            "| " + " | ".join(map(str, (family, len(own), loaded, captured, equal, certified, positive, broken))) + " |"
        )
    failed = [f"- {row.family} {Path(row.name).name}: {row.error}" for row in rows if row.error]
    return "\n".join([*lines, "", *failed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("--onnx", type=Path, help="a folder with ONNX files")
    parser.add_argument("--only", default="", help="networks whose name holds this text")
    parser.add_argument("--json", type=Path, help="write each network's row to this file")
    parser.add_argument("--workers", type=int, default=1, help="networks at once")
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(asdict(run_one(*options.one))))
        return
    chosen = [which for which in names(options.onnx) if options.only in " ".join(which)]
    rows = []
    with ThreadPoolExecutor(options.workers) as pool:
        for row in pool.map(in_a_process, chosen):
            rows.append(row)
            print(*asdict(row).values(), file=sys.stderr)
            if options.json:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
