"""Where sealed rows are kept: one file per backend, chosen by the scheme of a URL."""

from __future__ import annotations

import re
from importlib import import_module

from cloister.errors import ConfigurationError
from cloister.stores.base import Store

# Which module keeps the rows of a scheme, and which extra brings its driver.
_SCHEMES: dict[str, tuple[str, str | None]] = {
    "memory": ("memory", None),
    "sqlite": ("sqlite", None),
    "postgresql": ("postgres", "postgres"),
    "postgres": ("postgres", "postgres"),
    "redis": ("redis", "redis"),
    "rediss": ("redis", "redis"),
    "redis+cluster": ("redis", "redis"),
    "rediss+cluster": ("redis", "redis"),
    "token": ("token", None),
}


def connect(url: str | Store) -> Store:
    """Give the store that *url* names, not yet opened; a store object is given back as it is.

    Raises `ConfigurationError` for an unknown scheme or option, naming those that there are, and for a driver that is
    not installed, with the command that installs it.
    """
    if not isinstance(url, str):
        return url
    scheme, separator, _ = url.partition("://")
    if scheme not in _SCHEMES or not separator:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        meant = f"; did you mean sqlite:///{url}?" if re.fullmatch(r"[\w./ -]*\w\.\w{1,8}", url) else ""
        raise ConfigurationError(f"no store is known for a URL that begins like this one; known are {known}{meant}")
    module, extra = _SCHEMES[scheme]
    try:
        store: Store = import_module(f"cloister.stores.{module}").from_url(url)
    except ImportError as error:
        if extra is None or (error.name or "").startswith("cloister"):
            raise
        raise ConfigurationError(
            f"{scheme}:// needs a driver that is not installed: pip install 'cloister[{extra}]'"
        ) from error
    return store
