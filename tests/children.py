"""Processes that tests start, and that must not outlive them."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable


def _end_with_us() -> None:
    """Ask the kernel to end this process with the one that started it, whatever ends that one."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG; to PostgreSQL it means: at once


def ends_with_us() -> Callable[[], None] | None:
    """What a child does before it begins, so that it does not outlive a test run that is killed.

    Linux alone has that, and ends a child with the thread that started it, which must be the last one.
    """
    return _end_with_us if sys.platform == "linux" and threading.current_thread() is threading.main_thread() else None
