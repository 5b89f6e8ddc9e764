"""Each driver at its default settings, in transaction mode, on pools of 3 that others use at the same time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.drivers.checks import CHECKS
from tests.drivers.registry import DRIVERS, Driver
from tests.drivers.running import TIMEOUT_SECONDS, Outcome

# A driver's first test waits for its program.
pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS + 60)

done = [(driver, check) for driver in DRIVERS for check in CHECKS if check not in driver.lacks]


@pytest.mark.parametrize("driver, check", done, ids=[f"{driver.name}-{check}" for driver, check in done])
def test_driver(driver: Driver, check: str, outcome: Callable[[Driver], Outcome]) -> None:
    assert outcome(driver).failure(check) is None


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)
def test_exceptions_are_still_ones(driver: Driver, outcome: Callable[[Driver], Outcome]) -> None:
    result = outcome(driver)
    assert result.trouble == ""
    assert result.version
    assert set(result.failures).isdisjoint(driver.lacks), "a reason is given for leaving out what is done"
    assert set(driver.lacks) <= set(CHECKS)
