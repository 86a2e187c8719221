"""Counters: how many persons an exporter has sent abroad, as a fact, and the windows over which laws count.

A counter that is not among the facts, or whose window is over, is unknown, and unknown is above every threshold. The
numbers include the reservation for the payload that is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Final

SHANGHAI: Final = timezone(timedelta(hours=8), "Asia/Shanghai")
"""Without daylight saving since 1991. The law names no time zone; this is our reading, on every record."""


class CounterKind(Enum):
    """What is counted, for one exporter, over which window."""

    CN_PERSONS = "cn_persons_year"
    """Persons whose non-sensitive data left China since 1 January (CAC Order 16 art. 5, 7, 8)."""
    CN_SENSITIVE_PERSONS = "cn_sensitive_persons_year"
    """Persons whose sensitive data left China since 1 January (CAC Order 16 art. 7, 8)."""
    US_GENOMIC = "us_genomic_persons_12m"
    """US persons, to one foreign person, in the preceding 12 months (28 CFR 202.205); so the next six."""
    US_OMIC = "us_omic_persons_12m"
    US_BIOMETRIC = "us_biometric_persons_12m"
    US_LOCATION = "us_location_devices_12m"
    US_HEALTH = "us_health_persons_12m"
    US_FINANCIAL = "us_financial_persons_12m"
    US_IDENTIFIERS = "us_identifier_persons_12m"

    @property
    def calendar_year(self) -> bool:
        """Whether the window is a calendar year in Asia/Shanghai; else it is the preceding 12 months."""
        return self in (CounterKind.CN_PERSONS, CounterKind.CN_SENSITIVE_PERSONS)


@dataclass(frozen=True, slots=True)
class Counter:
    """A count that was read at one moment."""

    kind: CounterKind
    count: int
    as_of_ms: int
    valid_until_ms: int
    """First millisecond at which it may not be relied on: the lease of the count."""

    def from_ms(self) -> int:
        """Return the first millisecond at which the count says something: a year that has not begun says nothing."""
        return year_in_shanghai(self.as_of_ms)[0] if self.kind.calendar_year else 0

    def until_ms(self) -> int:
        """Return the first millisecond at which the count says nothing: its lease is over, or its year."""
        if not self.kind.calendar_year:
            return self.valid_until_ms
        return min(self.valid_until_ms, year_in_shanghai(self.as_of_ms)[1])

    def holds(self, now_ms: int) -> bool:
        """Whether the count says something at `now_ms`."""
        return self.from_ms() <= now_ms < self.until_ms()


def year_in_shanghai(now_ms: int) -> tuple[int, int]:
    """Return the first millisecond of the calendar year in Asia/Shanghai that holds `now_ms`, and of the next one.

    Raises OverflowError or ValueError outside of the years 1 to 9998.
    """
    year = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms)).astimezone(SHANGHAI).year
    return _ms(datetime(year, 1, 1, tzinfo=SHANGHAI)), _ms(datetime(year + 1, 1, 1, tzinfo=SHANGHAI))


def twelve_months_before(now_ms: int) -> int:
    """Return the same moment of the same day a year earlier, in UTC.

    29 February becomes 28 February: the window is then a day longer, and counts more, never less.
    """
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms)
    day = 28 if (now.month, now.day) == (2, 29) else now.day
    return _ms(now.replace(year=now.year - 1, day=day))


def _ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
