"""METHODS: every training method, with its objective, its label and its look in figures."""

from typing import NamedTuple

from acertlab.training.methods.acert import ACERT, ACERTFast
from acertlab.training.methods.adversarial import ACERTMTLIBP, ACERTSABR, CCIBP, MTLIBP, SABR, STAPS, TAPS, ExpIBP
from acertlab.training.methods.base import Standard
from acertlab.training.methods.ibp import CROWNIBP, IBP, FastIBP


class Method(NamedTuple):
    """A training method."""

    objective: type[Standard]  # what it minimises
    label: str  # what tables and legends call it
    colour: str  # of figures: a name of `acertlab.visualization.style.PALETTE`
    marker: str  # plotly's name of a symbol


METHODS: dict[str, Method] = {  # in the order of tables and legends
    "standard": Method(Standard, "Standard", "black", "circle"),
    "ibp": Method(IBP, "IBP", "sky", "square"),
    "fast-ibp": Method(FastIBP, "FastIBP", "blue", "diamond"),
    "crown-ibp": Method(CROWNIBP, "CROWN-IBP", "green", "triangle-up"),
    "sabr": Method(SABR, "SABR", "purple", "cross"),
    "mtl-ibp": Method(MTLIBP, "MTL-IBP", "green", "x"),
    "cc-ibp": Method(CCIBP, "CC-IBP", "purple", "pentagon"),
    "exp-ibp": Method(ExpIBP, "Exp-IBP", "sky", "triangle-down"),
    "taps": Method(TAPS, "TAPS", "blue", "hourglass"),
    "staps": Method(STAPS, "STAPS", "orange", "bowtie"),
    "acert": Method(ACERT, "ACERT", "vermillion", "star"),
    "acert-fast": Method(ACERTFast, "ACERT-fast", "orange", "hexagram"),
    "acert-sabr": Method(ACERTSABR, "ACERT + SABR (ours)", "purple", "star-diamond"),
    "acert-mtl-ibp": Method(ACERTMTLIBP, "ACERT + MTL-IBP (ours)", "green", "star-square"),
}


def name_of(method: str) -> str:
    """What a method is called in sentences and figures, and what is said behind it; one of your own by its own name."""
    name, bracket, more = method.partition(" (")
    return METHODS[name].label + bracket + more if name in METHODS else method
