"""The checks of the course's exercises: they say what is wrong with an answer, and the notebook goes on.

Cells of an exercise, by their tags: `exercise` (the task, with a folded hint), `attempt` (the reader's code, at first
without an answer), `check`, and `solution`, folded, whose code block solves it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SOLUTION = "solution"  # the tag of what a copy without solutions leaves out


class UnsolvedError(Exception):
    """There is no answer yet."""


def given(answer: Any) -> Any:
    """The answer; while it is `...` or None, as in an untouched cell, the check ends here."""
    if answer is None or answer is ...:
        raise UnsolvedError
    return answer


@contextmanager
def checking(praise: str = "") -> Iterator[None]:
    """Prints what became of the assertions inside: right (and ``praise``), what is wrong, or not solved yet."""
    try:
        yield
    except UnsolvedError:
        print("Not solved yet.")
    except AssertionError as error:
        print(f"Not yet right: {error}")
    except Exception as error:  # whatever the reader's code raises: the cells below are to run all the same
        print(f"Not yet right: the code raises {type(error).__name__}: {error}")
    else:
        print(f"Right. {praise}".strip())
