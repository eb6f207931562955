"""The command `acertlab` (`python -m acertlab`): notebooks, demo, sweep, certify, report, table, compare, ..."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from acertlab import __version__
from acertlab._exercise import SOLUTION
from acertlab._lock import LockHeldError
from acertlab._validation import number

GREETING = "Certified radii of images, networks trained to have large ones, and what that costs in accuracy."
EPILOG = """to begin:
  acertlab notebooks course  and then: jupyter lab course
  acertlab demo              two fronts, a training each, and their picture, in minutes
  acertlab COMMAND --help    tells more of a command

from Python: import acertlab as al; al.certified_radius(model, x, y, eps_max=8/255)"""

PAGES = ("anywidget", "ipywidgets", "jinja2", "latex2mathml", "nbconvert", "papermill", "plotly")  # what writes them
# What a command needs is imported when it runs: torch, plotly and Dask take seconds, --help does not.


def demo(args: argparse.Namespace) -> int:
    """Train two fronts on the embedded digits and draw the accuracy-robustness picture, in two minutes."""
    from acertlab._optional import need

    need("notebooks", "acertlab demo", *PAGES)
    from acertlab.data.files import shipped
    from acertlab.data.run import runs_folder
    from acertlab.sweep.plan import read_plan

    notebooks, out = shipped("notebooks"), runs_folder().absolute() / "demo"
    plan = read_plan(notebooks / "demo.yaml", out, show=True)
    from acertlab.sweep.executor import run_command

    if status := run_command(plan):
        return status
    front, learnt = _learnt_from_the_demo(out / "cells")
    parameters = {"runs_root": str(out / "cells"), "front_dir": front, "out_dir": str(out)}
    page = _executed(notebooks / "03_pareto.ipynb", out, parameters, f"## What the demo shows\n\n{learnt}")
    print(f"\n{learnt}\n\nnotebook: {page.with_suffix('.ipynb')}\nHTML:     {page}")
    return 0


def _learnt_from_the_demo(root: Path) -> tuple[str, str]:
    """The folder of ACERT's front; how it compares with FastIBP's, and why they differ more elsewhere: whose boxes."""
    import numpy as np

    from acertlab.analysis.fronts import analyse
    from acertlab.data.run import SHIPPED, load_run
    from acertlab.data.run_table import load_runs

    runs = load_runs(root)
    (pair,) = analyse(runs).comparisons
    walked = runs.loc[runs.method == "acert"]
    ends = (100 * value for name in ("acc", "acr") for value in (walked[name].min(), walked[name].max()))
    epochs = walked.loc[walked.interpolated.isna()].epochs.sum()

    def shares(root: Path, dataset: str) -> list[float]:
        """Per cent of the training images without a box and with the whole one, in the last epoch at kappa = 0."""
        found = load_runs(root).query("dataset == @dataset and method == 'acert' and kappa == 0")
        last = [load_run(path).history[["share_zero", "share_cap"]].to_numpy()[-1] for path in found["path"]]
        return (100 * np.mean(last, axis=0)).tolist()

    (digits_none, digits_whole), (cifar_none, cifar_whole) = shares(root, "digits"), shares(SHIPPED, "cifar10")
    told = "ACERT's front is one training of {} epochs: {} networks, Acc {:.1f} to {:.1f} %, ACR {:.1f} to {:.1f} %."
    return (
        walked.one_training.iloc[0],
        f"""{told.format(epochs, len(walked), *ends)}
{pair.sentence}
Such easy images hardly tell methods apart: in the last epoch of ACERT at kappa = 0, {digits_whole:.0f} % of the digits
have a box as large as FastIBP's, and {digits_none:.0f} % have none, so that both train on nearly the same boxes.
Of the CIFAR-10 images whose results come with acertlab, {cifar_whole:.0f} % have the whole box and
{cifar_none:.0f} % none: there a radius for each image changes much, and ACERT's front lies higher.
See data/results/README.md.""",
    )


def _executed(notebook: Path, folder: Path, parameters: dict[str, str], preface: str = "") -> Path:
    """Executes a notebook into a folder, and writes its page there; returns the page."""
    import papermill

    from acertlab.visualization.pages.notebook import notebook_page

    print(f"{notebook} ...", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    quiet = ["--IPKernelApp.log_level=CRITICAL"]  # a kernel calls its own end, by an interrupt, an error
    copy, options = folder / notebook.name, {"kernel_name": "python3", "progress_bar": False, "extra_arguments": quiet}
    papermill.execute_notebook(notebook, copy, parameters, **options, store_widget_state=False, start_timeout=600)
    page = copy.with_suffix(".html")
    notebook_page(copy, page, preface)
    return page


def handouts(args: argparse.Namespace) -> int:
    """Execute the notebooks and write each as one HTML page that needs no network."""
    from acertlab._optional import need

    need("notebooks", "acertlab handouts", *PAGES)
    from acertlab.data.files import shipped

    given = [Path(notebook) for notebook in args.notebooks] or sorted(shipped("notebooks").glob("*.ipynb"))
    print(f"{len(given)} notebooks into pages of {args.out}, minutes each ...", flush=True)
    with TemporaryDirectory() as runs:
        os.environ["ACERTLAB_RUNS"] = runs  # what a notebook trains is not kept, and 03 shows the shipped results
        for notebook in given:
            print(_executed(notebook, Path(args.out), {}))
    return 0


def notebooks(args: argparse.Namespace) -> int:
    """Copy the notebooks into a folder of yours, to read, run and change."""
    from acertlab.data.files import shipped

    target = Path(args.copy_to)
    files = sorted(f for f in shipped("notebooks").iterdir() if f.suffix in (".ipynb", ".yaml"))
    if there := [file.name for file in files if (target / file.name).exists()]:
        raise FileExistsError(f"COPY_TO: {target} holds {', '.join(there)} already; give another folder")
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, target)
        if args.without_solutions and file.suffix == ".ipynb":
            copy = json.loads(file.read_text(encoding="utf-8"))
            copy["cells"] = [cell for cell in copy["cells"] if SOLUTION not in cell["metadata"].get("tags", ())]
            (target / file.name).write_text(json.dumps(copy, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(files)} files in {target}; to open them: jupyter lab {target}")
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Execute a notebook over a grid of parameters, here or on a cluster."""
    from acertlab.sweep.plan import read_plan

    plan = read_plan(args.spec, args.out, show=True)  # before what carries it out is loaded
    from acertlab.sweep.executor import run_command

    return run_command(plan, args.workers, args.scheduler, args.tls, args.dry_run)


def certify(args: argparse.Namespace) -> int:
    """Certify a network on a dataset's test images: certified radii, accuracy, ACR and ART."""
    upto = f"radii of test images of {args.dataset} up to {args.eps_max:.4g}"
    print(f"{args.network}: {upto}, by {args.bound} ...", flush=True)
    from acertlab.data.datasets import load_dataset
    from acertlab.data.run import load_run
    from acertlab.models.onnx import load_onnx
    from acertlab.models.torch_program import load_program
    from acertlab.radius import certificate

    data, path = load_dataset(args.dataset), Path(args.network)
    if path.is_dir():
        model = load_run(path).load_model()
    elif path.suffix == ".onnx":
        model = load_onnx(path, input_shape=data.in_shape)
    else:
        model = load_program(path, input_shape=data.in_shape)
    pair = data.test_x[: args.images], data.test_y[: args.images]
    found = certificate.certify(model, pair, args.eps_max, bound=args.bound, sound=args.sound, run_dir=args.run_dir)
    print(found.table().to_string(index=False, header=False))
    if args.output:
        found.to_html(args.output)
        print(args.output)
    return 0


def report(args: argparse.Namespace) -> int:
    """Write one HTML page over many runs."""
    print(f"all finished runs below {args.runs}, into {args.output} ...", flush=True)
    from acertlab.visualization.pages.report import write_report

    for sentence in write_report(args.runs, args.output, args.resamples):
        print(f"acertlab report: not analysed: {sentence}", file=sys.stderr)
    print(args.output)
    return 0


def table(args: argparse.Namespace) -> int:
    """Print each method at the kappa that validation chose."""
    from acertlab._text import eps_text, markdown
    from acertlab.analysis.method_table import chosen_table
    from acertlab.data.run_table import by_sweep, load_finished

    for dataset, eps_max, group in by_sweep(load_finished(*args.runs)):
        print(f"\n{dataset}, eps_max {eps_text(eps_max)}:\n\n{markdown(chosen_table(group, args.eps, args.attack))}")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Print ACR at equal accuracy, seed by seed."""
    from acertlab._text import eps_text, markdown
    from acertlab.analysis.equal_accuracy import ratio_table
    from acertlab.data.run_table import by_sweep, load_finished
    from acertlab.training.methods.catalogue import name_of

    sweeps = list(by_sweep(load_finished(*args.runs)))
    with_both = [sweep for sweep in sweeps if {args.method, args.other} <= set(sweep[2].method)]
    for dataset, eps_max, group in with_both or sweeps:
        found = ratio_table(group, args.method, args.other)
        pair = f"{name_of(args.method)} / {name_of(args.other)}"
        print(f"\n{dataset}, eps_max {eps_text(eps_max)}, {pair}, mean ± standard error over seeds:\n")
        print(markdown(found) if len(found) else "no accuracy is reached by all of their fronts")
    return 0


def pack(args: argparse.Namespace) -> int:
    """Pack many run folders into one small folder, without weights."""
    from acertlab.data.pack import pack_runs
    from acertlab.data.run_table import load_runs

    out = pack_runs(args.runs, args.out, args.spec, progress=True, weights=args.weights)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {len(load_runs(out))} runs, {size / 1e6:.2f} MB")
    return 0


def estimate(args: argparse.Namespace) -> int:
    """Tell how long a training will take, from a few of its own steps."""
    print(f"{args.steps} steps of each phase of {args.method} on {args.dataset}, budget {args.budget} ...", flush=True)
    from acertlab.training.cost.estimate import estimate_sentence

    print(estimate_sentence(args.dataset, args.method, args.budget, args.steps))
    return 0


def gpu_check(args: argparse.Namespace) -> int:
    """Tell in eight minutes what holds on a GPU, and what training steps take there beside what was calculated."""
    if (args.out is None) == (args.pack is None):
        raise ValueError("give OUT, a folder for what is found, or --pack FILE")
    from acertlab.training.cost import gpu_check

    if args.out:
        return gpu_check.gpu_check(Path(args.out), args.images and Path(args.images), args.small)
    print(f"{args.pack}: {gpu_check.pack(Path(args.pack)) / 1e6:.2f} MB")
    return 0


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("acertlab", description=GREETING, epilog=EPILOG, formatter_class=plain)
    parser.add_argument("-V", "--version", action="version", version=f"acertlab {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    def command(run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__.replace("_", "-"), help=run.__doc__, description=run.__doc__)
        added.set_defaults(run=run)
        return added

    command(demo)
    one = command(notebooks)
    one.add_argument("copy_to", metavar="COPY_TO", help="the folder, made where there is none")
    one.add_argument("--without-solutions", action="store_true", help="for a class: leave the folded answers out")
    one = command(handouts)
    one.add_argument("out", help="the folder of the pages, made where there is none")
    one.add_argument("notebooks", nargs="*", help="notebook files (default: all that come with acertlab)")
    one = command(sweep)
    one.add_argument("spec", help="a YAML file; acertlab/sweep/spec.py says what it holds")
    one.add_argument("--out", default="", help="the sweep's folder (default: out in the file, else runs/SPEC)")
    one.add_argument(
        "--workers",
        type=int,
        default=0,
        help="jobs side by side; GPUs are shared in turn (default: one a GPU, else one a core)",
    )
    one.add_argument("--scheduler", help="address of a running Dask scheduler, tcp://... or tls://...")
    one.add_argument("--tls", nargs=3, metavar=("CA", "CERT", "KEY"), help="files, for a scheduler at tls://...")
    one.add_argument("--dry-run", action="store_true", help="check the file and list the jobs")
    one = command(certify)
    one.add_argument("network", help="a run's folder, an ONNX file, or one of torch.export.save or torch.jit.save")
    one.add_argument("dataset", help="digits, mnist, cifar10, ..., folder:PATH")
    one.add_argument("eps_max", type=number, help="the largest radius that counts, in pixel units, such as 8/255")
    one.add_argument("--bound", default="ibp", help="ibp, crown-ibp, crown, alpha-crown, exact (default: %(default)s)")
    one.add_argument("--sound", action="store_true", help="bound rounding errors too")
    one.add_argument("--images", type=int, help="only the first so many test images")
    one.add_argument("--output", help="an HTML page of the certificate")
    one.add_argument("--run-dir", help="a folder that keeps every finished batch, so that an interrupt loses none")
    one = command(report)
    one.add_argument("runs", help="folder that holds run folders or packed runs, at any depth")
    one.add_argument("--output", default="report.html", help="the page (default: %(default)s)")
    one.add_argument("--resamples", type=int, default=1000, help="draws of the bootstrap (default: %(default)s)")
    one = command(table)
    one.add_argument("runs", nargs="+", help="folders of runs, or of packed runs; a table a dataset and eps_max")
    one.add_argument("--eps", nargs="*", type=number, help="where to give certified accuracy (default: all known)")
    one.add_argument("--attack", action="store_true", help="run PGD there, on networks that were not attacked yet")
    one = command(compare)
    one.add_argument("runs", nargs="+", help="folders of runs, or of packed runs, of one network and schedule")
    one.add_argument("--method", default="acert")
    one.add_argument("--other", default="fast-ibp")
    one = command(pack)
    one.add_argument("runs", help="folder that holds run folders, at any depth")
    one.add_argument("out", help="the packed folder, such as data/results/mnist")
    one.add_argument("--weights", action="store_true", help="with the networks")
    one.add_argument("--spec", help="a file that says how the runs were made, copied beside them")
    one = command(estimate)
    one.add_argument("dataset")
    one.add_argument("method")
    one.add_argument("--budget", choices=("smoke", "fast", "paper"), default="paper")
    one.add_argument("--steps", type=int, default=10, help="measured in each phase (default: %(default)s)")
    one = command(gpu_check)
    one.add_argument("out", nargs="?", help="a folder: the same one again goes on with the steps that are missing")
    one.add_argument("--images", metavar="FILE", help="what --pack wrote (may be left out with --small: digits)")
    one.add_argument("--pack", metavar="FILE", help="write images of MNIST and CIFAR-10 and a network, and end")
    one.add_argument("--small", action="store_true", help="narrow networks and few images: seconds, also on a CPU")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 refused, others as the command says."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if "run" not in args:
        parser.print_help()
        return 0
    try:
        return args.run(args)
    except (OSError, ValueError, TypeError, ImportError, LockHeldError) as error:
        print(f"acertlab {args.run.__name__.replace('_', '-')}: error: {error}", file=sys.stderr)
        return 2 if args.run is sweep else 1  # of a sweep, 1 says that jobs failed


if __name__ == "__main__":
    sys.exit(main())
