import math

import pytest

from bench.errors import UserError
from bench.ranges import require_within


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[1, 8]", (1, 8), (0, 9, math.nan)),
        ("(0, 1]", (5e-324, 1), (0, 1.1, math.nan)),
        ("[0, 1)", (0, 0.999), (-5e-324, 1)),
        ("(0, inf)", (1e300,), (0, -1, math.inf, math.nan)),
        ("[-1, 0.5]", (-1, 0.5), (-1.1, 0.6)),
    ],
)
def test_the_ends_of_an_interval_belong_to_it_if_its_brackets_say_so(
    interval: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    for value in inside:
        require_within(interval, n=value)
    for value in outside:
        with pytest.raises(UserError, match=rf"^--model.n {value}: must be "):
            require_within(interval, n=value)


@pytest.mark.parametrize(
    ("interval", "value", "message"),
    [
        ("[1, 65536]", 0, "--snn.n 0: must be at least 1 and at most 65536"),
        ("[0, 1)", 1.0, "--snn.n 1.0: must be at least 0 and below 1"),
        ("(0, inf)", -2, "--snn.n -2: must be above 0"),
        ("(0, inf)", math.nan, "--snn.n nan: must be above 0 and finite"),
    ],
)
def test_the_message_names_the_limits(interval: str, value: float, message: str) -> None:
    with pytest.raises(UserError) as caught:
        require_within(interval, "--snn.", fine=3 if interval != "[0, 1)" else 0, n=value)
    assert str(caught.value) == message
