"""Sealed tokens under attack: lost replies, cancelled requests, broken disks, ledgers that answer late or wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister import stores

ALONE = "token://?allow_replay=1"


def over(tmp_path: Path) -> str:
    return f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}"


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["redis+cluster://a:7301,b:7302", "rediss+cluster://a:7301"])
def test_a_plus_in_the_url_of_a_ledger_is_a_plus(url: str) -> None:
    """The URL of a Redis Cluster is taken as it is written."""
    assert "+cluster://a:7301" in stores.connect(f"token://?ledger={url}").url
