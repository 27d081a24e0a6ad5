"""Every error that cloister raises.

::

    CloisterError
    ├── SessionNotFound (KeyError)      no such session for this owner: absent, foreign and malformed ids alike
    ├── SessionExpired                  the owner's own session timed out or was ended
    ├── SessionBusy                     another turn of the session did not finish in time
    ├── SessionConflict                 the session moved on, or the lease was lost; nothing was stored
    ├── IntegrityError                  what the store returned is not what was stored for this owner
    ├── TokenInvalid                    a sealed token is foreign, damaged or not a token
    ├── CredentialInvalid               a key or a session token lets nobody in
    ├── KeyReused (ValueError)          an idempotency key came again with something else
    ├── ReplyBlocked                    a reply was withheld, and the caller asked to be told by an error
    ├── RateLimited                     this owner is refused for a while
    ├── BudgetExceeded                  a token or cost budget is used up, or a text is too long for the window
    ├── ProviderError                   the model did not give a whole answer
    │   ├── ProviderTimeout             … in time
    │   ├── ProviderAuth                … because it does not accept the key
    │   └── ProviderRateLimited         … because it is asked too often
    ├── StoreError                      the store answered with a fault
    │   └── StoreUnavailable            … or cannot be reached, or is full
    ├── ConfigurationError (ValueError) something must be set up differently
    │   └── OptionRefused               … in what a turn asks of its model: an option that this one does not take
    ├── NoScope (LookupError)           no session scope is open here
    └── ScopeClosed (LookupError)       this task outlived the scope in which it was started

Messages carry names and counts; never a session id, conversation text or a secret.
``notice`` is a sentence that may be shown to an end user.
"""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar


class CloisterError(Exception):
    """Be the root of every error that cloister raises."""

    notice: ClassVar[str] = "Something went wrong. Please try again."


class SessionNotFound(CloisterError, KeyError):
    """Say that this owner has no such session.

    Raised alike for an absent id, somebody else's id and a malformed one.
    """

    notice = "This conversation does not exist. Please start a new one."

    def __init__(self) -> None:
        super().__init__("this owner has no such session; start a new one")

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[SessionNotFound], tuple[()]]:
        return type(self), ()


class SessionExpired(CloisterError):
    """Say that the owner's own session is over: ``reason`` is ``"expired"`` or ``"ended"``."""

    notice = "This conversation has ended. Please start a new one."

    def __init__(self, reason: str = "expired") -> None:
        what = "was ended" if reason == "ended" else "has timed out"
        super().__init__(f"the session {what}, and its content is gone; start a new one")
        self.reason = reason

    def __reduce__(self) -> tuple[type[SessionExpired], tuple[str]]:
        return type(self), (self.reason,)


class SessionBusy(CloisterError):
    """Say that another turn of the session did not finish within ``Limits.turn_wait``."""

    notice = "The previous message is still being answered. Please try again in a moment."


class SessionConflict(CloisterError):
    """Say that the session changed, or the lease was lost, before the commit: nothing was stored."""

    notice = "The conversation moved on meanwhile. Please send the message again."


class IntegrityError(CloisterError):
    """Say that bytes from the store are not what was sealed for this owner, session and position."""

    notice = "This conversation cannot be opened. The operator has been informed."


class TokenInvalid(CloisterError):
    """Say that a sealed token is foreign, damaged, out of date or not a token."""

    notice = "This conversation cannot be opened. Please start a new one."

    def __init__(self, text: str = "this token opens no session of this owner's; start a new one") -> None:
        super().__init__(text)


class CredentialInvalid(CloisterError):
    """Say that a secret lets nobody in: malformed, unknown, revoked and expired ones alike.

    ``reason`` says which of them it was, for the log alone: whoever showed the secret must not learn it.
    """

    notice = "You could not be signed in. Please sign in again."

    def __init__(self, reason: str = "unknown") -> None:
        super().__init__("this key or token lets nobody in; ask whoever gave it to you for another")
        self.reason = reason

    def __reduce__(self) -> tuple[type[CredentialInvalid], tuple[str]]:
        return type(self), (self.reason,)


class KeyReused(CloisterError, ValueError):
    """Say that an idempotency key was used for something else before; nothing was asked or stored."""

    notice = "This message was sent under a name that another one has. Please send it again."


class ReplyBlocked(CloisterError):
    """Say that a reply was withheld."""

    notice = "I cannot show this reply."


class RateLimited(CloisterError):
    """Say that this owner is refused for a while: ``retry_after`` says how long it still takes."""

    notice = "There were too many requests. Please try again in a few minutes."

    def __init__(self, message: str, retry_after: timedelta = timedelta(0)) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[RateLimited], tuple[str, timedelta]]:
        return type(self), (str(self.args[0]), self.retry_after)


class BudgetExceeded(CloisterError):
    """Say that a budget is used up, or that a text does not fit its window; the message says by how much.

    ``too_long`` tells the second from the first: no waiting mends it.
    """

    notice = "This message is too long, or your allowance is used up."

    def __init__(self, message: str = "", *, too_long: bool = False) -> None:
        super().__init__(message)
        self.too_long = too_long


class ProviderError(CloisterError):
    """Say that the model did not give a whole answer; ``unasked`` if it never got the question, which cost nothing."""

    notice = "The assistant is not available right now. Please try again."
    unasked: bool = False


class ProviderTimeout(ProviderError):
    """Say that the model did not answer in time."""

    notice = "The assistant took too long to answer. Please try again."


class ProviderAuth(ProviderError):
    """Say that the provider does not accept the key."""

    notice = "The assistant is not available right now. The operator has to look at it."
    unasked = True


class ProviderRateLimited(ProviderError):
    """Say that the provider is asked too often; ``retry_after`` is in seconds where it told."""

    notice = "The assistant is very busy. Please try again in a minute."
    unasked = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[ProviderRateLimited], tuple[str, float | None]]:
        return type(self), (str(self.args[0]), self.retry_after)


class StoreError(CloisterError):
    """Say that the store answered with a fault."""

    notice = "The conversation cannot be loaded right now. Please try again."


class StoreUnavailable(StoreError):
    """Say that the store cannot be reached, is locked, full or read-only; nothing was skipped."""


class ConfigurationError(CloisterError, ValueError):
    """Say what must be set up differently, and how."""


class OptionRefused(ConfigurationError):
    """Say that the model's provider does not take an ``option``, or its value, or what stands in the messages."""

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option

    def __reduce__(self) -> tuple[type[OptionRefused], tuple[str, str]]:
        return type(self), (str(self.args[0]), self.option)


class NoScope(CloisterError, LookupError):
    """Say that no session scope is open in this task."""

    def __init__(self) -> None:
        super().__init__("no session scope is open here; open one with `with session.scope():`")

    def __reduce__(self) -> tuple[type[NoScope], tuple[()]]:
        return type(self), ()


class ScopeClosed(CloisterError, LookupError):
    """Say that this task outlived the scope in which it was started."""

    def __init__(self) -> None:
        super().__init__("the session scope of this task has been closed; open one in the task itself")

    def __reduce__(self) -> tuple[type[ScopeClosed], tuple[()]]:
        return type(self), ()
