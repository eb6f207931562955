"""`make docs`: the pages of the public names, with the handouts as tutorials; they need no network.

python docs/build.py handouts docs/html
"""

import re
import sys
import warnings
from pathlib import Path

import pdoc

import acertlab as al
from acertlab.visualization.pages.notebook import mathml

FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
RESULTS = "data/results/README.md"  # to which a notebook links
PAGE = """<!doctype html><meta charset="utf-8"><title>Results</title>
<style>body {{ font-family: sans-serif; margin: 2em }} td, th {{ padding: 0 1ex }}</style>{}"""


def build(handouts: Path, out: Path) -> None:
    """Writes the pages of `acertlab`'s public names and modules into ``out``, and links the handouts from the first."""
    for name in al.__all__:  # loaded when they are asked for, so that pdoc finds them
        getattr(al, name)
    pages = sorted(handouts.glob("*.html"))
    tutorials = "".join(f"- [{page.stem}](tutorials/{page.name})\n" for page in pages)
    names = "".join(f"- [`al.{n}`](acertlab/{m.replace('.', '/')}.html)\n" for n, m in al._MODULES.items())
    al.__doc__ = f"{al.__doc__}\n\n## Tutorials\n\n{tutorials}\n\n## Modules\n\n{names}"
    pdoc.render.configure(docformat="google", template_directory=Path(__file__).parent)  # its custom.css
    plain = pdoc.render.env.filters["to_html"]
    pdoc.render.env.filters["to_html"] = lambda text: plain(FORMULA.sub(lambda tex: mathml(tex[1], "block"), text))
    modules = [f"acertlab.{module}" for module in al._MODULES.values()]
    others = [module for name, module in al._MODULES.items() if name != module]  # not found below the first page
    private = f"!acertlab\\.(?!({'|'.join(modules).replace('acertlab.', '')})$)"
    warnings.filterwarnings("ignore", "The module specification")  # a package's modules come with it, and are not shown
    pdoc.pdoc("acertlab", *(f"acertlab.{module}" for module in others), private, output_directory=out)
    text = (Path(__file__).parents[1] / RESULTS).read_text(encoding="utf-8")
    text = re.sub(r"\[([^]]+)\]\(\.\.[^)]+\)", r"\1", text)  # what it links to has no page
    (out / "results.html").write_text(PAGE.format(plain(text)), encoding="utf-8")
    (out / "tutorials").mkdir(exist_ok=True)
    for page in pages:
        text = page.read_text(encoding="utf-8").replace(f'href="../{RESULTS}"', 'href="../results.html"')
        (out / "tutorials" / page.name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
