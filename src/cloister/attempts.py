"""Who asks for too many sessions that are not theirs is refused for a while; absent and foreign ids count alike."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cloister.errors import RateLimited
from cloister.model import Owner

_MOST_OWNERS = 10_000


@dataclass(slots=True)
class _Tried:
    times: list[datetime] = field(default_factory=list)
    until: datetime | None = None


class Attempts:
    """Count what each owner asked for in vain, in this process; success in between changes nothing.

    The *most*-th attempt within *window* suspends its owner *duration* long. Of more than ten thousand owners, those
    whose last attempt is the longest ago are forgotten.
    """

    def __init__(self, most: int, window: timedelta, duration: timedelta) -> None:
        self.most = most
        self.duration = duration
        self._window = window
        self._tried: OrderedDict[Owner, _Tried] = OrderedDict()

    def failed(self, owner: Owner, now: datetime) -> datetime | None:
        """Count an attempt of *owner*; give until when they are suspended if this was one too many."""
        tried = self._tried.setdefault(owner, _Tried())
        self._tried.move_to_end(owner)
        if len(self._tried) > _MOST_OWNERS:
            self._tried.popitem(last=False)
        if _suspended(tried, now, self.duration):
            return None  # one that was under way when the others were refused
        tried.times = [time for time in tried.times if abs(now - time) < self._window] + [now]
        if len(tried.times) < self.most:
            return None
        tried.times, tried.until = [], now + self.duration
        return tried.until

    def check(self, owner: Owner, now: datetime) -> None:
        """Raise `RateLimited` if *owner* is suspended."""
        tried = self._tried.get(owner)
        if tried is not None and (left := _suspended(tried, now, self.duration)):
            raise RateLimited("too many sessions were asked for that are not this user's; wait, then go on", left)


def _suspended(tried: _Tried, now: datetime, duration: timedelta) -> timedelta | None:
    """Give how long a suspension still lasts: never longer than it was meant to, whatever became of the clock."""
    if tried.until is None or not timedelta(0) < tried.until - now <= duration:
        return None
    return tried.until - now
