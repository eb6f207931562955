"""The paper's figures beside ours."""

from acertlab.analysis.paper.tables import ROWS as ROWS
from acertlab.analysis.paper.tables import Row as Row
