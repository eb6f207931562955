"""Missing extras are named; jsonschema's grammar is loaded by its first use."""

import subprocess
import sys

import pytest

from acertlab._optional import need

DOORS = {  # what is imported or run, the library that it misses, and the extra that brings it
    "import acertlab as al; al.plots": ("plotly", "notebooks"),
    "import acertlab as al; al.widgets": ("anywidget", "notebooks"),
    "import acertlab as al; al.sweep": ("papermill", "sweep"),
    "from acertlab.sweep import clusters; clusters.slurm": ("distributed", "sweep"),
    "from acertlab.__main__ import demo; demo(None)": ("nbconvert", "notebooks"),
}


@pytest.mark.parametrize("code", DOORS)
def test_a_missing_extra_is_named_with_the_line_to_write(code: str) -> None:
    library, extra = DOORS[code]
    blocked = f"import sys; sys.modules[{library!r}] = None; {code}"
    said = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert said.returncode == 1
    last = said.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and f"needs {library}, which is not installed" in last
    assert last.endswith(f'pip install "acertlab[{extra}]"')


def test_several_are_named_at_once() -> None:
    with pytest.raises(ImportError, match=r'a needs no_b, no_c, which are not installed: pip install "acertlab\[x\]"'):
        need("x", "a", "no_b", "sys", "no_c")
    need("x", "a", "sys", "json")


def test_the_grammar_of_addresses_is_loaded_by_its_first_use() -> None:
    pytest.importorskip("rfc3987_syntax")
    code = """if True:
        import sys
        from acertlab._optional import spare_the_grammar
        spare_the_grammar()
        import jsonschema
        assert "lark" not in sys.modules
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        assert checker.conforms("https://example.org/\\u00e9", "iri") and not checker.conforms("no iri", "iri")
        assert not checker.conforms("a b", "iri-reference") and "lark" in sys.modules
        import rfc3987_syntax
        assert rfc3987_syntax.is_valid_syntax_port("80") and type(rfc3987_syntax).__name__ == "module"
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["visualization", "sweep.spec"])
def test_neither_figures_nor_sweeps_load_it(package: str) -> None:
    code = f"import sys, acertlab.{package}, nbformat; print('jsonschema' in sys.modules, 'lark' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "False"]
