"""The README's first Python example runs as it stands."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs_and_certifies() -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    names: dict = {}
    exec(example, names)
    assert "certified_radius" in example and (names["result"].radius > 0).float().mean() > 0.5


def test_both_commands_and_every_module_are_named() -> None:
    assert "make demo" in README and "make test" in README
    for path in (Path(__file__).parent.parent / "acertlab").glob("[a-z]*.py"):
        assert path.name in README, path.name
