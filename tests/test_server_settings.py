"""What the server is told: where it comes from, which one wins, and what a wrong one is told."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cloister.cli import main
from cloister.errors import ConfigurationError
from cloister.server.issuers import PUBLIC, SHARED, Issuer, SharedKey
from cloister.server.settings import ITEMS, TABLES, Policy, ServerSettings, describe
from cloister.settings import Settings

SECRET = "u3Vn2LxQ8sKp0RzYt7WcE5hJ1bMf9gDa"
ISSUER = """
[[server.issuers]]
issuer = "https://id.acme.example/"
audience = "chat"
algorithms = ["RS256", "ES256"]
tenants = "acme"
jwks_url = "https://id.acme.example/jwks"
"""
SHARING = """
[[server.issuers]]
issuer = "globex"
audience = ["chat", "beta"]
algorithms = "HS256"
tenants = ["globex", "initech"]
tenant_claim = "org"
user_claim = "email"
key_variable = "GLOBEX_KEY"
leeway = "5s"
types = ["JWT", ""]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str = "", environ: dict[str, str] | None = None, **given: Any) -> ServerSettings:
    Path("cloister.toml").write_text(text)
    return ServerSettings.read(environ=environ or {}, **given)


def test_nothing_set() -> None:
    """Without any setting the server listens on this machine alone, believes nobody's tokens and allows nothing."""
    found = ServerSettings.read(environ={})
    assert found == ServerSettings()
    assert (found.host, found.port, found.workers, found.loopback) == ("127.0.0.1", 8787, 1, True)
    assert (found.max_body, found.max_headers) == (1 << 20, 32 << 10)
    assert (found.issuers, found.trusted_proxies, found.cors_origins, found.models) == ((), (), (), ())
    assert found.policy("acme") == found.policy(None) == Policy((), False, None)
    assert found.said() == {}


def test_order() -> None:
    """The environment beats the file, and arguments beat both."""
    text = '[server]\nhost = "127.0.0.2"\nport = 1\nworkers = 2\n'
    found = read(text, {"CLOISTER_SERVER_PORT": "2", "CLOISTER_SERVER_WORKERS": "3"}, workers=4)
    assert (found.host, found.port, found.workers) == ("127.0.0.2", 2, 4)


def test_every_kind_of_value() -> None:
    """Values come from a file in its own types, and from the environment as text."""
    text = """
        [server]
        max_body = "2 MiB"
        max_headers = 65536
        trusted_proxies = ["10.0.0.7", "fd00::/8"]
        cors_origins = ["https://chat.example", "http://localhost:3000"]
        models = ["gpt-4.1", "deepseek-chat"]
        requests_per_minute_user = "off"
        turns_at_once_tenant = 7
        shutdown_grace = "5s"
        metrics = "off"
    """
    environ = {
        "CLOISTER_SERVER_MAX_BODY": "2MiB",
        "CLOISTER_SERVER_MAX_HEADERS": "64KiB",
        "CLOISTER_SERVER_TRUSTED_PROXIES": "10.0.0.7, fd00::/8",
        "CLOISTER_SERVER_CORS_ORIGINS": "https://chat.example  http://localhost:3000",
        "CLOISTER_SERVER_MODELS": "gpt-4.1 deepseek-chat",
        "CLOISTER_SERVER_REQUESTS_PER_MINUTE_USER": "off",
        "CLOISTER_SERVER_TURNS_AT_ONCE_TENANT": "7",
        "CLOISTER_SERVER_SHUTDOWN_GRACE": "5s",
        "CLOISTER_SERVER_METRICS": "off",
    }
    found = read(text)
    assert found == read("", environ)
    assert found.max_body == 2 << 20
    assert found.trusted_proxies == (ipaddress.ip_network("10.0.0.7/32"), ipaddress.ip_network("fd00::/8"))
    assert found.cors_origins == ("https://chat.example", "http://localhost:3000")
    assert found.models == ("gpt-4.1", "deepseek-chat")
    assert (found.requests_per_minute_user, found.turns_at_once_tenant) == (None, 7)
    assert (found.shutdown_grace, found.metrics) == (timedelta(seconds=5), "off")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOST", " "),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("WORKERS", "0"),
        ("WORKERS", "1000"),
        ("MAX_BODY", "1GiB"),
        ("MAX_BODY", "0"),
        ("MAX_BODY", "1 MB"),
        ("MAX_HEADERS", "100"),
        ("MAX_ITEMS", "0"),
        ("TRUSTED_PROXIES", "*"),
        ("TRUSTED_PROXIES", "0.0.0.0/0"),
        ("TRUSTED_PROXIES", "10.0.0.7/8"),
        ("TRUSTED_PROXIES", "proxy.example"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "null"),
        ("CORS_ORIGINS", "https://*.example"),
        ("CORS_ORIGINS", "https://chat.example/"),
        ("CORS_ORIGINS", "https://chat.example/path"),
        ("CORS_ORIGINS", "https://a@chat.example"),
        ("CORS_ORIGINS", "HTTPS://chat.example"),
        ("CORS_ORIGINS", "chat.example"),
        ("CORS_ORIGINS", "https://chat.example:port"),
        ("MODELS", "gpt 4\x00"),
        ("REQUESTS_PER_MINUTE_USER", "0"),
        ("TURNS_AT_ONCE_TENANT", "many"),
        ("SHUTDOWN_GRACE", "30"),
        ("SHUTDOWN_GRACE", "2d"),
        ("METRICS", "everybody"),
    ],
)
def test_bad_value(name: str, value: str) -> None:
    """A bad value is refused by the name of its variable, with what it must be, and is not repeated."""
    with pytest.raises(ConfigurationError, match=rf"^CLOISTER_SERVER_{name} must be ") as caught:
        read("", {f"CLOISTER_SERVER_{name}": value})
    assert value == " " or f"{value} " not in f"{caught.value} " or value in ("0", "30", "*")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server = 1", r"^server in cloister.toml must be a table"),
        ("[server]\nhots = 'x'", r"^server.hots in cloister.toml is not a setting of the server; there are host, "),
        ("[server]\nport = '1x'", r"^server.port in cloister.toml must be a whole number"),
        ("[server]\nport = true", r"^server.port in cloister.toml must be"),
        ("[server]\nmodels = [1]", r"^server.models in cloister.toml must be"),
        ("[server]\ntls_cert = 'a.pem'", r"^server.tls_cert and server.tls_key go together"),
        ("[server]\npolicy = 1", r"^\[server.policy\] in cloister.toml must be a table"),
        ("[server]\ntenants = 1", r"^server.tenants in cloister.toml must be a table for each"),
        ("[server.tenants]\nacme = 1", r"^\[server.tenants.acme\] in cloister.toml must be a table"),
        ("[server.policy]\nend_user_may = []", r"^end_user_may of \[server.policy\] in cloister.toml is not part"),
        (
            "[server.policy]\nend_users_may = ['all']",
            r"^\[server.policy\] in cloister.toml: end_users_may names some of",
        ),
        (
            "[server.policy]\nbody_user = 'yes'",
            r"^body_user of \[server.policy\] in cloister.toml must be true or false",
        ),
        ("[server.tenants.acme]\nbody_user = 1", r"^body_user of \[server.tenants.acme\] in cloister.toml must be"),
        ("[server.tenants.' acme']\nbody_user = true", r"must not begin or end with a space"),
        ("[server]\nissuers = 1", r"^server.issuers in cloister.toml must be a table for each, \[\[server.issuers\]\]"),
        ("[server.issuers]\nissuer = 'x'", r"^server.issuers in cloister.toml must be a table for each"),
        (
            "[[server.issuers]]\nissuer = 'x'",
            r"^\[\[server.issuers\]\] 1 in cloister.toml must say audience, algorithms",
        ),
        (ISSUER + "jkw = 1", r"^jkw of \[\[server.issuers\]\] 1 in cloister.toml is not part of an issuer"),
        (
            ISSUER + "leeway = '1x'",
            r"^leeway of \[\[server.issuers\]\] 1 in cloister.toml must be a number with its unit",
        ),
        (ISSUER + "key = 'secret'", r"^\[\[server.issuers\]\] 1 in cloister.toml must not hold the key itself"),
        (ISSUER + "leeway = '6m'", r"^\[\[server.issuers\]\] 1 in cloister.toml: leeway must be at most 5m"),
        (ISSUER + ISSUER, r"^the issuer https://id.acme.example/ is there twice"),
        (ISSUER + SHARING, r"^key_variable of \[\[server.issuers\]\] 2 in cloister.toml must name a variable"),
    ],
)
def test_bad_file(text: str, said: str) -> None:
    """What is wrong in the table is refused by its name and place."""
    with pytest.raises(ConfigurationError, match=said):
        read(text)


def test_unknown_variable() -> None:
    """A variable that the server does not know is refused, and so is a table in the environment."""
    with pytest.raises(ConfigurationError, match=r"^CLOISTER_SERVER_HOTS is not a setting of the server"):
        read("", {"CLOISTER_SERVER_HOTS": "x"})
    for name in TABLES:
        with pytest.raises(ConfigurationError, match=f"^CLOISTER_SERVER_{name.upper()} must be a table"):
            read("", {f"CLOISTER_SERVER_{name.upper()}": "x"})
    with pytest.raises(ConfigurationError, match=r"^server\.hots is not a setting"):
        read("", hots=1)


def test_what_others_put_there() -> None:
    """What Kubernetes sets beside a service that is called cloister-server is not taken for ours."""
    others = {
        "CLOISTER_SERVER_SERVICE_HOST": "10.0.0.1",
        "CLOISTER_SERVER_SERVICE_PORT_HTTP": "8787",
        "CLOISTER_SERVER_PORT": "tcp://10.0.0.1:8787",
        "CLOISTER_SERVER_PORT_8787_TCP_ADDR": "10.0.0.1",
    }
    assert read("", others) == ServerSettings()
    Settings.read(environ=dict(others))


def test_the_library_leaves_it_alone() -> None:
    """The library reads the same file and environment, and heeds nothing of the server's; the server nothing of its."""
    text = f'store = "memory://"\ncontext_tokens = 5\n[server]\nport = 9\n{ISSUER}'
    Path("cloister.toml").write_text(text)
    environ = {"CLOISTER_SERVER_PORT": "7", "CLOISTER_CONTEXT_TOKENS": "6", "CLOISTER_SERVER_ODD": "1"}
    assert Settings.read(environ=dict(environ)).context_tokens == 6
    del environ["CLOISTER_SERVER_ODD"]
    assert ServerSettings.read(environ=environ).port == 7
    with pytest.raises(ConfigurationError, match=r"^CLOISTER_SERVER is no setting"):
        Settings.read(environ={"CLOISTER_SERVER": "1"})


def test_the_same_file() -> None:
    """The file is the one that the library reads: named by argument or variable, or the usual one."""
    Path("one.toml").write_text("[server]\nport = 1\n")
    Path("two.toml").write_text("[server]\nport = 2\n")
    assert read("[server]\nport = 3\n").port == 3
    assert ServerSettings.read(environ={"CLOISTER_CONFIG": "one.toml"}).port == 1
    assert ServerSettings.read(environ={"CLOISTER_CONFIG": "one.toml"}, file="two.toml").port == 2


def test_policies() -> None:
    """A tenant's policy says what is different; the rest, and other tenants, follow the policy for everybody."""
    found = read("""
        [server.policy]
        end_users_may = ["instructions"]
        [server.tenants.acme]
        body_user = true
        models = ["gpt-4.1"]
        [server.tenants.globex]
        end_users_may = []
    """)
    assert found.policy("acme") == Policy(("instructions",), True, ("gpt-4.1",))
    assert found.policy("globex") == Policy((), False, None)
    assert found.policy("initech") == found.policy(None) == Policy(("instructions",), False, None)
    assert read(f"[server.policy]\nend_users_may = {list(ITEMS)}").default.end_users_may == ITEMS


def test_issuers() -> None:
    """Issuers are read with what they are pinned to, and a shared key comes from the environment alone."""
    found = read(ISSUER + SHARING, {"GLOBEX_KEY": f"{SECRET}\n"})
    acme, globex = found.issuers
    assert (acme.issuer, acme.audience, acme.tenants) == ("https://id.acme.example/", ("chat",), ("acme",))
    assert (acme.algorithms, acme.key, acme.types) == (("RS256", "ES256"), None, ("JWT", "at+jwt"))
    assert globex.key == SECRET.encode()
    assert (globex.user_claim, globex.leeway, globex.types) == ("email", timedelta(seconds=5), ("JWT", ""))
    for text in (repr(found), str(found.said()), repr(globex.key), str(globex.key), f"{globex.key!r:>30}"):
        assert SECRET not in text


GOOD: dict[str, Any] = {
    "issuer": "x",
    "audience": ("chat",),
    "algorithms": ("RS256",),
    "tenants": ("acme",),
    "jwks_url": "https://id.acme.example/jwks",
}
KEY = SharedKey.from_text(SECRET)


@pytest.mark.parametrize(
    ("different", "said"),
    [
        ({"algorithms": ("none",)}, "algorithms that go with a jwks_url are RS256"),
        ({"algorithms": ("RS256", "none")}, "algorithms that go with a jwks_url"),
        ({"algorithms": ("HS256",)}, "algorithms that go with a jwks_url"),
        ({"algorithms": ("RS256", "HS256")}, "algorithms that go with a jwks_url"),
        ({"algorithms": ("rs256",)}, "algorithms that go with a jwks_url"),
        ({"algorithms": ()}, "algorithms must name at least one"),
        ({"algorithms": ("RS256",), "jwks_url": None, "key": KEY}, "algorithms that go with a shared key are HS256"),
        ({"algorithms": ("HS256", "RS256"), "jwks_url": None, "key": KEY}, "algorithms that go with a shared key"),
        ({"algorithms": ("HS256", "none"), "jwks_url": None, "key": KEY}, "algorithms that go with a shared key"),
        ({"key": KEY}, "either a jwks_url or"),
        ({"jwks_url": None}, "either a jwks_url or"),
        ({"algorithms": ("HS256",), "jwks_url": None, "key": b"k" * 32}, "key must be a SharedKey"),
        ({"kid": "one"}, "kid goes with a shared key"),
        ({"audience": ()}, "audience must name at least one"),
        ({"types": ()}, "types must name at least one"),
        ({"tenants": ()}, "tenants must name at least one"),
        ({"tenants": ("acme", "globex")}, "tenant_claim must name the claim"),
        ({"tenants": ("acme\u200b",)}, "tenant must not contain U[+]200B"),
        ({"leeway": timedelta(hours=1)}, "leeway must be at most"),
        ({"leeway": timedelta(seconds=-1)}, "leeway must be at most"),
        *(
            ({"jwks_url": url}, "jwks_url must be an https:// address")
            for url in (
                "http://id.acme.example/jwks",
                "http://127.0.0.1/jwks",
                "file:///etc/passwd",
                "ftp://id.acme.example/jwks",
                "https://",
                "//id.acme.example/jwks",
                "https://user:pass@id.acme.example/jwks",
                "https://id.acme.example/jwks#x",
                "https://id.acme.example/ jwks",
                "https://id.acme.example:port/jwks",
                "https://id.acmé.example/jwks",
                "https://[::1/jwks",
            )
        ),
        ({"jwks_url": "http://id.acme.example/jwks", "insecure": True}, "jwks_url must be"),
        ({"jwks_url": "http://127.0.0.1.evil.example/jwks", "insecure": True}, "jwks_url must be"),
    ],
)
def test_unsafe_issuers(different: dict[str, Any], said: str) -> None:
    """An issuer that could be confused with another, or whose keys could be anybody's, cannot be set up."""
    assert Issuer(**GOOD).issuer == "x"
    with pytest.raises(ConfigurationError, match=said):
        Issuer(**GOOD | different)


def test_plain_http_for_tests() -> None:
    """A key set over plain HTTP is for this machine alone, and has to be asked for."""
    for host in ("127.0.0.1:1", "localhost:1", "[::1]:1"):
        assert Issuer(**GOOD | {"jwks_url": f"http://{host}/jwks", "insecure": True}).insecure


def test_both_kinds_of_algorithms() -> None:
    """No algorithm goes with both kinds of key, and none is the one without any."""
    assert not set(PUBLIC) & set(SHARED)
    assert not {name for name in (*PUBLIC, *SHARED) if name.lower() == "none"}


@pytest.mark.parametrize("weak", ["", "short", "x" * 31, "x" * 64, "abcabcabc" * 10, "é" * 15])
def test_weak_keys(weak: str) -> None:
    """A shared key that could be guessed is refused, and not repeated."""
    with pytest.raises(ConfigurationError, match="must have at least 256 random bits") as caught:
        SharedKey.from_text(weak)
    assert not weak or weak not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"^GLOBEX_KEY for .* 1|must name a variable"):
        read(SHARING, {"GLOBEX_KEY": weak})


def test_loopback() -> None:
    """Only addresses of this machine are taken for it; a name that is not known is not."""
    for host, loopback in [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ]:
        assert ServerSettings(host=host).loopback is loopback, host


def test_what_goes_on_record() -> None:
    """What is set is there to be put on record, as text, without secrets and without addresses of key sets."""
    found = read(ISSUER + SHARING + "[server.tenants.acme]\nbody_user = true\n", {"GLOBEX_KEY": SECRET}, port=9)
    said = found.said()
    assert said["server.port"] == "9"
    assert (
        said["server.issuers"] == "https://id.acme.example/ (RS256, ES256) for acme, globex (HS256) for globex, initech"
    )
    assert "acme: end_users_may=, body_user=True" in said["server.policies"]
    assert all(isinstance(value, str) for value in said.values())


def test_listed() -> None:
    """Every setting is listed with its meaning, and by `cloister doctor --settings` too."""
    names = [name for name, meaning in describe() if meaning]
    assert set(names) - set(TABLES) | {"issuers", "default", "policies"} == set(ServerSettings.__slots__)
    shown = CliRunner().invoke(main, ["doctor", "--settings"], env={"COLUMNS": "400"})
    assert shown.exit_code == 0
    for name in names:
        assert f"server.{name}" in shown.output
    assert "CLOISTER_SERVER_PORT" in shown.output
    assert "CLOISTER_SERVER_ISSUERS" not in shown.output
