"""Times of day and dates, written one way: 3 p.m. is 15:00, July 4th, 1776 is 1776-07-04."""

from __future__ import annotations

import re

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"([0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:,? ?([0-9]{4}))?"
_MONTH_FIRST = re.compile(rf"{_MONTH} ?{_DAY}{_YEAR}")
_DAY_FIRST = re.compile(rf"(?:the )?{_DAY} ?(?:of )?{_MONTH}{_YEAR}")
_ISO = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_CLOCK = re.compile(r"([0-9]{1,2})(?:: ?([0-9]{2}))? ?(a\.?m\.?|p\.?m\.?)?")


def read_moment(text: str) -> str | None:
    """The one spelling of a time or date; None when the text is neither.

    A time without a.m. or p.m. (10:30) is not the same as one with it.
    """
    if not text[:1].isdigit() and text[:1].lower() not in "jfmasondt":
        return None
    text = text.lower()
    if match := _CLOCK.fullmatch(text):
        return _clock(*match.groups())
    if match := _MONTH_FIRST.fullmatch(text):
        month, day, year = match.groups()
    elif match := _DAY_FIRST.fullmatch(text):
        day, month, year = match.groups()
    elif match := _ISO.fullmatch(text):
        return _date(match.group(1), int(match.group(2)), int(match.group(3)))
    else:
        return None
    return _date(year, 1 + _MONTHS.index(month[:3]), int(day))


def _date(year: str | None, month: int, day: int) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{year or 'any'}-{month:02}-{day:02}"


def _clock(hour_text: str, minute: str | None, half: str | None) -> str | None:
    hour = int(hour_text)
    if half is None and minute is None:
        return None  # a number
    if int(minute or 0) > 59 or hour > (12 if half else 24) or (half and hour == 0):
        return None
    if half:
        hour = hour % 12 + (12 if half[0] == "p" else 0)
    suffix = "" if half or hour > 12 else "?"  # 15:00 is one time, 3:00 may be two
    return f"{hour:02}:{minute or '00'}{suffix}"
