import math

import pytest

from lm.serving.limits import Limits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"rows": 0}, "rows: expected 1 or more, got 0"),
        ({"rows": 10**9}, "rows: expected at most 1024, since each needs memory, got 1000000000"),
        ({"waiting": -1}, "waiting: expected 0 or more, got -1"),
        ({"seconds": math.nan}, "seconds: expected a positive number, got nan"),
    ],
)
def test_invalid_limits_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)
