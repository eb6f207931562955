"""The rules of the layout that import-linter does not know; see CONTRIBUTING.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import acertlab as al
from acertlab.training.config import TrainConfig
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.presets import METHOD_SETTINGS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "acertlab"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
FACES = sorted(PACKAGE.rglob("__init__.py"))
TESTED_ELSEWHERE = {  # modules without a test file of their own name, and where they are tested
    "__main__": "guides/test_command.py",
    "bounds/margin": "bounds/test_properties.py",
    "bounds/crown/auto_lirpa_compat": "bounds/test_auto_lirpa.py",
    "bounds/crown/crown_ibp": "training/test_methods.py",
    "bounds/rules/affine": "bounds/test_ibp.py",
    "bounds/rules/batch_invariance": "bounds/test_ibp.py",
    "bounds/rules/dispatch": "bounds/test_any_model.py",
    "bounds/rules/elementwise": "bounds/test_any_model.py",
    "bounds/rules/norms": "bounds/test_tightness.py",
    "bounds/rules/operators": "bounds/test_any_model.py",
    "bounds/rules/products": "bounds/test_any_model.py",
    "bounds/rules/shapes": "bounds/test_any_model.py",
    "bounds/sound/network": "bounds/test_sound.py",
    "bounds/sound/rounding": "bounds/test_sound.py",
    "bounds/sound/rules": "bounds/test_sound.py",
    "bounds/crown/conversion": "bounds/test_auto_lirpa.py",
    "bounds/graph/capture": "bounds/test_adversarial_models.py",
    "bounds/graph/comparison": "bounds/test_adversarial_models.py",
    "bounds/graph/functional": "bounds/test_adversarial_models.py",
    "bounds/graph/plan": "bounds/test_graph.py",
    "bounds/graph/structure": "bounds/test_graph.py",
    "models/initialisation": "models/test_architectures.py",
    "radius/exact/program": "radius/test_exact.py",
    "radius/exact/radii": "radius/test_exact.py",
    "radius/exact/relu_network": "radius/test_exact.py",
    "sweep/job": "sweep/test_executor.py",
    "training/cost/gpu_steps": "training/test_gpu_check.py",
    "training/cost/roofline": "benchmarks/test_roofline.py",
    "training/presets": "training/test_config.py",
    "training/schedules": "training/test_config.py",
    "training/loop/state": "training/test_train.py",
    "training/loop/step": "training/test_no_sync.py",
    "training/methods/acert": "training/test_methods.py",
    "training/methods/adversarial": "training/test_methods.py",
    "training/methods/base": "training/test_methods.py",
    "training/methods/catalogue": "training/test_methods.py",
    "training/methods/ibp": "training/test_methods.py",
    "training/methods/pgd": "training/test_methods.py",
    "visualization/pages/certificate": "radius/test_certificate.py",
    "visualization/widgets/components": "visualization/widgets/test_explorer.py",
    "visualization/widgets/pareto": "visualization/widgets/test_explorer.py",
}


def imported(path: Path) -> list[str]:
    """The modules and names that a file imports from the package, dotted."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    return [
        f"{node.module}.{alias.name}" for node in nodes for alias in node.names if node.module.startswith("acertlab")
    ]


def module_file(name: str) -> Path:
    return ROOT / (name.replace(".", "/") + ".py")


def test_the_contracts_of_import_linter_are_kept() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


def test_no_module_bears_a_name_that_its_package_shows() -> None:
    """`from acertlab.radius import certificate` is a module, whatever `acertlab.radius` re-exports."""
    for face in FACES:
        if face.parent == PACKAGE:
            shown = set(al.__all__) - {"models", "sweep"}
        else:
            tree = ast.parse(face.read_text())
            shown = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
        beside = {
            path.stem for path in face.parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
        }
        assert not shown & beside, face


PICTURES = {"plotly", "ipywidgets", "IPython", "nbformat", "jsonschema", "lark", "jinja2", "narwhals"}
TRAINING = PICTURES | {"sklearn", "scipy", "distributed", "papermill", "rich", "yaml"}
COMPILER = {"torchvision", "torchvision.models", "torch._dynamo", "sympy"}
STAYS_OUT = {  # of a fresh process that runs this
    "import acertlab": TRAINING | {"torch", "pandas", "numpy"},
    "import acertlab.__main__": TRAINING | {"torch", "pandas", "numpy"},
    "import acertlab.sweep.job": {"torch", "pandas", "plotly", "ipywidgets", "lark", "sklearn"},
    "al.load_runs": TRAINING | {"torch"},
    "al.certified_radius": TRAINING | COMPILER | {"pandas", "pyarrow"},
    "al.train, al.certify, al.analyse": TRAINING | COMPILER,
    "al.plots": {"ipywidgets", "IPython", "nbformat", "lark", "sklearn", "distributed"},
    "al.widgets": {"nbformat", "lark", "sklearn", "distributed"},
}


@pytest.mark.parametrize("code", STAYS_OUT)
def test_what_nobody_asked_for_is_not_loaded(code: str) -> None:
    code = f"import acertlab as al\n{code}\nimport sys\nprint(*{STAYS_OUT[code]} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == []


def test_the_public_names_are_the_stubs() -> None:
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    stub = {a.asname for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names if a.asname}
    stub |= {target.id for n in tree.body if isinstance(n, ast.Assign) for target in n.targets}
    assert stub == set(al.__all__) == set(dir(al))
    for name in al.__all__:
        assert getattr(al, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'certified_radios'"):
        _ = al.certified_radios


def test_the_public_names_are_those_of_0_1_0() -> None:
    before = """Analysis AttackResult Box ImageData Normalize RadiusBracket RadiusResult RadiusStatus Report RootResult
        RootStatus Run TrainConfig accuracy acr adversarial_accuracy analyse art attacked_radius augment bisect brentq
        certified_accuracy certified_margin certified_radius certify chandrupatla clean_margin clean_pass freeze
        hypervolume ibp_init_ import_run interval load_dataset load_onnx load_program load_run load_runs load_weights
        models pareto_front pgd plots preset propagate radius_bracket rule rules sound sweep to_float train widgets"""
    assert set(before.split()) <= set(al.__all__)


def test_folders_and_files_are_small() -> None:
    for face in FACES:
        items = [p.name for p in face.parent.iterdir() if p.suffix == ".py" or p.is_dir()]  # templates, too
        assert len([name for name in items if not name.startswith("_")]) <= 8, face.parent
    for path in MODULES:
        lines = path.read_text().count("\n")
        assert 20 <= lines <= 400, (path, lines)


def test_modules_import_modules_and_faces_only_their_own() -> None:
    for path in MODULES:
        for name in imported(path):
            module, _, _ = name.rpartition(".")
            assert module_file(name).is_file() or module_file(module).is_file() or module == "acertlab", (path, name)
    for face in FACES:
        package = ".".join(face.parent.relative_to(ROOT).parts)
        own = [name for name in imported(face) if not name.startswith("acertlab._optional.")]
        assert all(name.startswith(package + ".") for name in own), face


def test_every_module_has_its_tests() -> None:
    """In tests/, by the same path or by the package's and the module's name."""
    for path in MODULES:
        within = path.relative_to(PACKAGE).with_suffix("")
        name = f"test_{within.name.lstrip('_')}.py"
        own = [ROOT / "tests" / within.parent / name, ROOT / "tests" / within.parts[0] / name, ROOT / "tests" / name]
        elsewhere = TESTED_ELSEWHERE.get(within.as_posix())
        assert any(test.is_file() for test in own) != (elsewhere is not None), within
        assert elsewhere is None or (ROOT / "tests" / elsewhere).is_file(), within


def test_the_tables_agree() -> None:
    assert set(METHOD_SETTINGS) <= set(METHODS)
    readme = (ROOT / "README.md").read_text()
    for method in METHODS:
        assert TrainConfig(method=method).objective() is not None
        assert f"`{method}`" in readme or method.startswith("acert-"), method


def test_the_package_does_not_reach_out_of_itself() -> None:
    """One module knows where notebooks and results are, in a clone and in a wheel: `acertlab.data.files.shipped`."""
    for path in MODULES:
        if path != PACKAGE / "data" / "files.py":
            assert ".parents[" not in path.read_text() and ".parent.parent" not in path.read_text(), path
