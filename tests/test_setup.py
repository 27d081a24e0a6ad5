"""``scripts/setup``, as far as it can be tested without fetching packages."""

import re
import subprocess
import sys
from pathlib import Path

SETUP = Path(__file__).parent.parent / "scripts" / "setup"
OPTIONAL = (
    "prometheus_client",
    "psycopg",
    "psycopg_pool",
    "redis",
    "spacy",
    "phonenumbers",
    "joserfc",
    "starlette",
    "uvicorn",
)


def test_importing_everything_goes_on_where_optional_packages_are_missing() -> None:
    """Without ``dev`` they are, and this is how `make demo` and `make serve` begin in a fresh clone."""
    (script,) = re.findall(r"^\.venv/bin/python - <<'END'\n(.*?)^END$", SETUP.read_text(encoding="utf-8"), re.M | re.S)
    missing = f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
    done = subprocess.run([sys.executable, "-"], input=missing + script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
