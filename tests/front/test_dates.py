"""Dates of answers are those that the standard library writes."""

from __future__ import annotations

from email.utils import formatdate

from hypothesis import given
from hypothesis import strategies as st

from node_agent.front.dates import http_date


@given(st.integers(0, 253_402_300_799))
def test_a_date_is_written_as_mail_writes_it(unix_s: int) -> None:
    assert http_date(unix_s) == formatdate(unix_s, usegmt=True)
