import pytest

from lm.training.console import duration


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.2, "0 s"),
        (45, "45 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (12 * 60 + 20, "12 min"),
        (3599, "1 h"),
        (3 * 3600 + 20 * 60, "3 h 20 min"),
        (86399, "1 day"),
        (86400 + 3600, "1 day 1 h"),
        (2 * 86400 + 4 * 3600 + 100, "2 days 4 h"),
        (10.99 * 86400, "11 days"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
