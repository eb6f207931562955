"""The paper's figures beside ours."""

from acertlab.analysis.paper.tables import ROWS as ROWS, Row as Row
