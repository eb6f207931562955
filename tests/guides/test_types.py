"""No type errors by pyright (standard)."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_there_are_no_type_errors() -> None:
    command = [str(Path(sys.executable).with_name("basedpyright")), "--outputjson", "--pythonpath", sys.executable]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [e for e in json.loads(ran.stdout)["generalDiagnostics"] if e["severity"] == "error"]
    told = [f"{Path(e['file']).relative_to(ROOT)}:{e['range']['start']['line'] + 1}: {e['message']}" for e in errors]
    assert not told, "\n".join(told)
