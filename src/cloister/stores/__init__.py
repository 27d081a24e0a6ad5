"""Where sealed rows are kept: one file per backend, chosen by the scheme of a URL."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

from cloister.errors import ConfigurationError
from cloister.stores.base import Store

# Each scheme and its options with their allowed values.
_SCHEMES: dict[str, dict[str, tuple[str, ...]]] = {
    "memory": {},
    "sqlite": {"synchronous": ("full", "normal")},
}


def connect(url: str | Store) -> Store:
    """Give the store that *url* names, not yet opened; a store object is given back as it is.

    Raises `ConfigurationError` for an unknown scheme or option, naming those that there are.
    """
    if not isinstance(url, str):
        return url
    scheme, separator, _ = url.partition("://")
    if scheme not in _SCHEMES or not separator:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        meant = f"; did you mean sqlite:///{url}?" if re.fullmatch(r"[\w./ -]*\w\.\w{1,8}", url) else ""
        raise ConfigurationError(f"no store is known for a URL that begins like this one; known are {known}{meant}")
    parts = urlsplit(url)
    options = _options(scheme, parts.query)
    if scheme == "memory":
        from cloister.stores.memory import MemoryStore

        if parts.netloc or parts.path:
            raise ConfigurationError("memory:// takes no name: every one that is opened is a store of its own")
        return MemoryStore()
    from cloister.stores.sqlite import SqliteStore

    if parts.netloc or len(parts.path) < 2:
        raise ConfigurationError(
            "name the file: sqlite:///chats.db in this folder, sqlite:////var/lib/chats.db elsewhere"
        )
    return SqliteStore(unquote(parts.path[1:]), synchronous=options.get("synchronous", "full").upper())


def _options(scheme: str, query: str) -> dict[str, str]:
    known = _SCHEMES[scheme]
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in known:
            has = "it has " + ", ".join(known) if known else "it has none"
            raise ConfigurationError(f"{scheme}:// has no option {name!r}; {has}")
        if value not in known[name]:
            raise ConfigurationError(f"the option {name!r} of {scheme}:// is one of {', '.join(known[name])}")
    return options
