"""Type errors by pyright (standard): none where a number is certified, and elsewhere no more than there were."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
# may only fall; the packages that are not named have none
MOST = {"analysis": 2, "sweep": 10, "top": 2}


def test_type_errors_only_become_fewer() -> None:
    command = [str(Path(sys.executable).with_name("basedpyright")), "--outputjson", "--pythonpath", sys.executable]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [e for e in json.loads(ran.stdout)["generalDiagnostics"] if e["severity"] == "error"]
    parts = [Path(e["file"]).relative_to(ROOT / "acertlab").parts for e in errors]
    counts = Counter(part[0] if len(part) > 1 else "top" for part in parts)
    told = [f"{Path(e['file']).relative_to(ROOT)}:{e['range']['start']['line'] + 1}: {e['message']}" for e in errors]
    for package, count in counts.items():
        most = MOST.get(package, 0)
        mine = [line for line in told if line.startswith(f"acertlab/{package}/")]
        assert count <= most, "\n".join([f"{package}: {count} errors, at most {most}", *mine])
