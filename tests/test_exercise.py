"""What a check says; the exercises themselves are solved in guides/test_exercises.py."""

import pytest

from acertlab._exercise import checking, given


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (4, "Right. Two and two.\n"),
        (..., "Not solved yet.\n"),
        (None, "Not solved yet.\n"),
        (5, "Not yet right: 5 is too many\n"),
        ("four", "Not yet right: the code raises TypeError: "),
    ],
)
def test_a_check_says_what_became_of_the_answer(answer: object, said: str, capsys: pytest.CaptureFixture) -> None:
    with checking("Two and two."):
        assert given(answer) - 4 == 0, f"{answer} is too many"
    assert capsys.readouterr().out.startswith(said)


def test_an_interrupt_is_no_wrong_answer() -> None:
    with pytest.raises(KeyboardInterrupt), checking():
        raise KeyboardInterrupt
