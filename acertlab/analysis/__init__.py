"""Methods compared by their fronts."""

from acertlab.analysis.fronts import Analysis as Analysis
from acertlab.analysis.fronts import analyse as analyse
