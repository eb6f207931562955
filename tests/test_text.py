"""Numbers, eps and seconds as text."""

import pytest

from acertlab import _text


@pytest.mark.parametrize(
    ("eps", "text"), [(8.8 / 255, "8.8/255"), (8 / 255, "8/255"), (1 / 255, "1/255"), (0.3, "0.3"), (0.0, "0")]
)
def test_an_eps_as_the_paper_writes_it(eps: float, text: str) -> None:
    assert _text.printed_eps(eps) == text


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "0.03137 (8/255)"), (0.1, "0.1"), (0.4, "0.4")])
def test_an_eps_as_a_number(eps: float, text: str) -> None:
    assert _text.eps_text(eps) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00831, "8.31 ms"),
        (0.42, "0.42 s"),
        (1.0, "1 s"),
        (11.8, "12 s"),
        (200, "3.3 min"),
        (9000, "2.5 h"),
        (200_000, "2.3 days"),
        (0.0, "0 s"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert _text.seconds_text(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.123456, "0.1235"), (5, "5"), (True, "True"), ("mnist", "mnist")])
def test_a_setting(value: object, text: str) -> None:
    assert _text.short(value) == text
