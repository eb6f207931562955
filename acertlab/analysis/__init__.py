"""Methods compared by their fronts."""

from acertlab.analysis.fronts import Analysis as Analysis, analyse as analyse
