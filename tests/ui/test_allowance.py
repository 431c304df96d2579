from __future__ import annotations

import pytest

from acclimate.errors import DataError
from acclimate.ui.allowance import Allowance


def test_each_owner_holds_no_more_than_they_may_and_gets_it_back() -> None:
    allowance = Allowance(10 * 2**20)
    allowance.take("a", 8 * 2**20)
    with pytest.raises(DataError, match="hold 8 MiB of files, and 10 MiB is the most"):
        allowance.take("a", 3 * 2**20)
    allowance.take("b", 10 * 2**20)
    allowance.give_back("a", 6 * 2**20)
    allowance.take("a", 8 * 2**20)
    allowance.give_back("a", 10 * 2**20)
    allowance.take("a", 10 * 2**20)
