"""Whether a failed call is worth another try, and how long to wait before it. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random

# Besides every 5xx: timeout, conflict, too early, too many requests.
_RETRIED = frozenset({408, 409, 425, 429})
_NEVER_MENDS = frozenset({501, 505})  # not implemented, version not supported
_NO_MONEY = "insufficient_quota"  # OpenAI's code for a 429 that waiting does not mend


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`max_retries` further tries; before the i-th a wait drawn evenly from between nothing and
    `first_wait_seconds` * 2^i, at most `max_wait_seconds` (full jitter: clients that failed
    together do not come back together). What a server asks for in Retry-After is waited on top, if
    it is at most `max_server_seconds`; a longer wait is an error."""

    max_retries: int = 8
    first_wait_seconds: float = 0.5
    max_wait_seconds: float = 30.0
    max_server_seconds: float = 120.0

    def wait_seconds(self, num_failed: int, rng: Random) -> float:
        """How long to wait after the `num_failed`-th failure in a row, counted from 1."""
        longest = self.first_wait_seconds * 2.0 ** min(num_failed, 32)
        return rng.uniform(0.0, min(longest, self.max_wait_seconds))


def is_retryable(status: int, headers: Mapping[str, str], body: str) -> bool:
    """Whether another try at a call that was answered with `status` may succeed.

    A server that says `x-should-retry` (lower-case names in `headers`) knows best.
    """
    said = headers.get("x-should-retry", "").lower()
    if said in ("true", "false"):
        return said == "true"
    if _NO_MONEY in body or status in _NEVER_MENDS:
        return False
    return status in _RETRIED or status >= 500


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float:
    """The wait that Retry-After asks for, in seconds or as a date; 0 when it asks for none."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal() and value.isascii() and len(value) < 10:
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())
