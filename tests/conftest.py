"""What holds for every test: no network but this machine's own, no settings of whoever runs it, bounded examples."""

from __future__ import annotations

import gc
import ipaddress
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tests.databases import database, emptied, migrated, rows
from tests.servers import pgbouncer, postgres, redis, redis_cluster
from tests.serving import server
from tests.upstreams import naps, upstream

__all__ = [
    "database",
    "emptied",
    "migrated",
    "naps",
    "pgbouncer",
    "postgres",
    "redis",
    "redis_cluster",
    "rows",
    "server",
    "upstream",
]

# Settings, keys and proxies of the person who runs the tests would make them pass or fail for no reason of ours.
# CLOISTER_TEST_… names the servers to test with, and stays.
for name in list(os.environ):
    ours = name.startswith("CLOISTER_") and not name.startswith("CLOISTER_TEST_")
    if ours or name.endswith("_API_KEY") or name.lower().endswith("_proxy"):
        del os.environ[name]

settings.register_profile("default", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), max_examples=100, print_blob=True)
settings.register_profile("soak", settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def _is_local(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # otherwise a Unix socket
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if not _is_local(host):
        raise RuntimeError(f"a test tried to reach {host!r}; tests talk to this machine only")


# An audit hook, not a patched socket: it sees connections made from C as well. uvloop goes past both.
sys.addaudithook(_refuse_network)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int | None:
    """Let one process run all tests where a server is named, whose roles and settings two would both change.

    Otherwise each starts servers of its own, and there are as many as there are cores.
    """
    return 1 if any(name.startswith("CLOISTER_TEST_") for name in os.environ) else None


def pytest_collection_finish() -> None:
    """Leave what was imported out of all collections of garbage to come: tests ask for hundreds."""
    gc.collect()
    gc.freeze()


KINDS = ["memory", "sqlite", "redis", "postgres"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes a `url` on every kind of store; those about ids that stay are not for tokens."""
    own = any("url" in marker.args[0] for marker in metafunc.definition.iter_markers("parametrize"))
    if "url" in metafunc.fixturenames and not own:
        plain = metafunc.definition.get_closest_marker("plain_ids")
        metafunc.parametrize("url", KINDS if plain else [*KINDS, "token"], indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a fresh store of each kind; a test may ask for ``cluster`` and ``pooler`` too."""
    prefix = f"prefix={secrets.token_hex(4)}:"
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite:///{tmp_path / 'x.db'}?synchronous=normal"
        case "redis":
            return f"redis://{request.getfixturevalue('redis')}/0?{prefix}"
        case "token":
            return f"token://?ledger=sqlite:///{tmp_path / 'x.db'}?synchronous=normal"
        case "cluster":
            return f"redis+cluster://{request.getfixturevalue('redis_cluster')}?{prefix}"
        case "pooler":
            port = request.getfixturevalue("pgbouncer")
            return str(request.getfixturevalue("database").url(port=port)) + "?pooler=1"
    return str(request.getfixturevalue("rows").url())
