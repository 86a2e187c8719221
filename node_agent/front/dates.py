"""Dates as HTTP writes them. The standard library's writer comes with all of its mail."""

from __future__ import annotations

from functools import lru_cache
from time import gmtime

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


# All answers of a second bear the same.
@lru_cache(maxsize=1)
def http_date(unix_s: int) -> str:
    """Return a time as the header `date` has it, such as `Sun, 06 Nov 1994 08:49:37 GMT`."""
    year, month, day, hour, minute, second, weekday = gmtime(unix_s)[:7]
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
