"""Every refused argument: one wording, and an error that is caught as TypeError where the type is wrong."""

import numpy as np
import pytest

from acertlab._validation import Within, check, tidy

POSITIVE = Within(0, open_low=True)


@pytest.mark.parametrize(
    ("value", "accepted", "parse", "expected"),
    [
        (1, Within(0, 1), False, 1),
        (np.float32(0.5), Within(0, 1), False, 0.5),
        (np.int64(3), Within(1, kind=int), False, 3),
        ("8/255", Within(0, 1), True, 8 / 255),
        ("5", int, True, 5),
        (5.0, int, True, 5),
        (1, float, True, 1.0),
        ("True", bool, True, True),
        ("acert", ("ibp", "acert"), False, "acert"),
        ("a", {"a": 1}, False, "a"),
        (2, lambda value: value + 1, False, 3),
    ],
)
def test_accepted_values_come_back_as_pythons_own(value, accepted, parse, expected):
    found = check("x", value, accepted, parse=parse)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "accepted", "parse", "error", "says"),
    [
        (0.0, POSITIVE, False, ValueError, "a finite number > 0"),
        (float("nan"), POSITIVE, False, ValueError, "a finite number > 0"),
        (10**400, float, True, ValueError, 'a number (0.1 or "8/255")'),
        (float("inf"), float, False, ValueError, "a finite number"),
        (1.0, Within(0, 1, open_high=True), False, ValueError, "a finite number >= 0 and < 1"),
        ("8/0", Within(0, 1), True, ValueError, 'a number (0.1 or "8/255") >= 0 and <= 1'),
        (0, Within(1, kind=int), False, ValueError, "a whole number >= 1"),
        (0, Within(1e-38, says="a number that float32 holds"), False, ValueError, "a number that float32 holds"),
        ("8/255", Within(0, 1), False, TypeError, "a finite number >= 0 and <= 1"),
        (2.0, Within(1, kind=int), False, TypeError, "a whole number >= 1"),
        (True, int, False, TypeError, "a whole number"),
        (None, float, False, TypeError, "a finite number"),
        (1, bool, True, TypeError, "True or False"),
        ("true", bool, False, TypeError, "True or False"),
        (3, str, True, TypeError, "text"),
        ("acrt", ("ibp", "acert"), False, ValueError, "ibp, acert (did you mean 'acert'?)"),
        ([], {"a": 1}, False, ValueError, "a"),
    ],
)
def test_a_refused_value_is_named_with_what_is_accepted(value, accepted, parse, error, says):
    with pytest.raises(error) as caught:
        check("x", value, accepted, parse=parse)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError) == (error is TypeError)
    assert str(caught.value) == f"x = {value!r}: accepted is {says}"


def test_whole_numbers_beyond_what_a_float_holds() -> None:
    for given in (2**53 + 1, str(2**53 + 1)):
        assert check("seed", given, int, parse=True) == 2**53 + 1


def test_a_decimal_that_was_computed_is_that_decimal() -> None:
    assert tidy(0.1 + 0.2) == 0.3 and tidy(8 / 255) == 8 / 255 and tidy(1 / 3) == 1 / 3 and tidy(3) == 3
