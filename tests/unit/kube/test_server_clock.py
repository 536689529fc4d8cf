"""The API server's clock, from the Date of its answers."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from pretune.kube.server_clock import ServerClock

from tests.builders.constants import NOW


class Clocks:
    """The server's clock, our machine's, and our monotonic one, which started a while ago."""

    def __init__(self, ahead: float) -> None:
        self.server, self.ahead = NOW, ahead
        self.clock = ServerClock(lambda: self.server - NOW + 5000.0, lambda: self.server + ahead)

    def answer(self, late: float = 0.0) -> None:
        """An answer arrives that was sent `late` seconds ago."""
        self.clock.observe(formatdate(self.server - late, usegmt=True))


@pytest.mark.parametrize("ahead", [-600.0, 0.0, 700.0])
def test_after_an_answer_the_time_is_the_servers_however_wrong_our_own_is(ahead: float) -> None:
    clocks = Clocks(ahead)
    assert clocks.clock.now() == NOW + ahead
    clocks.answer()
    assert clocks.clock.now() == NOW
    clocks.server += 100.25
    assert clocks.clock.now() == NOW + 100.25


def test_answers_that_are_late_or_without_a_date_do_not_turn_the_time_back() -> None:
    clocks = Clocks(0.0)
    clocks.server += 0.9
    clocks.answer()
    assert clocks.clock.now() == NOW, "Date has whole seconds"
    clocks.server += 0.2
    clocks.answer()
    assert clocks.clock.now() == NOW + 1
    clocks.answer(late=2.0)
    for date in (None, "", "yesterday"):
        clocks.clock.observe(date)
    assert clocks.clock.now() == NOW + 1


def test_a_server_whose_clock_is_set_is_followed() -> None:
    clocks = Clocks(0.0)
    clocks.answer()
    clocks.answer(late=60.0)
    assert clocks.clock.now() == NOW - 60
    clocks.answer(late=-60.0)
    assert clocks.clock.now() == NOW + 60
