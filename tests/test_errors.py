"""The tree of errors: what each is, that it travels, and that it tells nothing it should not."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Iterator

import pytest

from cloister import errors, sessions
from cloister.errors import (
    CloisterError,
    ConfigurationError,
    NoScope,
    ProviderError,
    ProviderRateLimited,
    ScopeClosed,
    SessionExpired,
    SessionNotFound,
    StoreError,
)


def tree(root: type[CloisterError] = CloisterError) -> Iterator[type[CloisterError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


ALL = list(tree())
FIXED = (SessionNotFound, NoScope, ScopeClosed)


def made(kind: type[CloisterError]) -> CloisterError:
    return kind() if kind in FIXED else kind("what happened and what to do")


@pytest.mark.parametrize("kind", ALL)
class TestEvery:
    def test_travels_whole(self, kind: type[CloisterError]) -> None:
        """Every error comes back from pickle and copy as it was, at every protocol."""
        error = made(kind)
        copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
        for twin in (*copies, copy.copy(error), copy.deepcopy(error)):
            assert type(twin) is kind
            assert str(twin) == str(error)
            assert twin.args == error.args
            assert vars(twin) == vars(error)

    def test_has_a_notice_for_end_users(self, kind: type[CloisterError]) -> None:
        """Every error has a sentence that may be shown to anybody, and it is the same for all instances."""
        assert re.fullmatch(r"[A-Z][^\n{}%]*\.", kind.notice)
        assert made(kind).notice is kind.notice

    def test_stands_in_the_drawn_tree(self, kind: type[CloisterError]) -> None:
        """The tree in the module's docstring shows every error, below its parent."""
        drawing = inspect.getdoc(errors) or ""
        lines = [line for line in drawing.splitlines() if re.search(rf"(?<!\w){kind.__name__}(?!\w)", line)]
        assert len(lines) == 1
        if kind is not CloisterError:
            assert lines[0].index(kind.__name__) == (4 if CloisterError in kind.__bases__ else 8) + 4

    def test_is_public(self, kind: type[CloisterError]) -> None:
        """Every error can be imported from the package itself."""
        import cloister

        assert getattr(cloister, kind.__name__) is kind

    def test_says_what_it_says(self, kind: type[CloisterError]) -> None:
        """The text of an error is its message, without quotes around it."""
        assert str(made(kind)) == made(kind).args[0]


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (SessionNotFound, KeyError),
        (ConfigurationError, ValueError),
        (NoScope, LookupError),
        (ScopeClosed, LookupError),
        (errors.ProviderTimeout, ProviderError),
        (errors.ProviderAuth, ProviderError),
        (ProviderRateLimited, ProviderError),
        (errors.StoreUnavailable, StoreError),
    ],
)
def test_is_also_what_people_catch(kind: type[CloisterError], base: type[Exception]) -> None:
    """Errors that mean what a built-in one means can be caught as that."""
    assert issubclass(kind, base)


def test_a_foreign_session_is_no_permission_error() -> None:
    """No error is a `PermissionError`, which would tell that something exists."""
    assert not [kind for kind in ALL if issubclass(kind, PermissionError)]


def test_integrity_is_not_mistaken_for_configuration() -> None:
    """An integrity alarm and a missing key are told apart by their class."""
    assert not issubclass(errors.IntegrityError, ConfigurationError)
    assert not issubclass(ConfigurationError, errors.IntegrityError)


def test_not_found_takes_no_text() -> None:
    """`SessionNotFound` cannot carry an id: it is the same whoever raises it."""
    with pytest.raises(TypeError):
        SessionNotFound(sessions.new_id())  # type: ignore[call-arg] # the mistake
    assert SessionNotFound().args == SessionNotFound().args


@pytest.mark.parametrize("reason", ["expired", "ended", "\x1b[2J cs_canary"])
def test_expired_keeps_its_reason_out_of_its_text(reason: str) -> None:
    """The reason, which comes from the store's clear columns, picks a sentence and is not part of it."""
    error = SessionExpired(reason)
    assert error.reason == reason
    assert "canary" not in str(error)
    assert ("ended" in str(error)) == (reason == "ended")


def test_rate_limits_keep_when_to_come_back() -> None:
    """``retry_after`` survives pickling."""
    assert pickle.loads(pickle.dumps(ProviderRateLimited("slow down", 2.5))).retry_after == 2.5
