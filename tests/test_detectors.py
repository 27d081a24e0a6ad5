"""Detectors of other projects, with the real packages; and what the wheel carries for our own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ConfigurationError
from cloister.scrub import Scrubber, Span, lists
from cloister.scrub.detectors import PhoneNumbers, Presidio
from cloister.scrub.spans import UNSEARCHED

ROOT = Path(__file__).parent.parent


def test_phonenumbers_knows_the_plans_of_countries() -> None:
    """A number that only its country's plan tells from any other is found once the country is named."""
    pytest.importorskip("phonenumbers")
    text = "Ruf 030901820 an"
    assert Scrubber().find(text) == []
    assert Scrubber(PhoneNumbers()).find(text) == []
    assert Scrubber(PhoneNumbers("DE")).find(text) == [Span(4, 13, "PHONE")]


def test_phonenumbers_has_no_limit_to_hide_behind() -> None:
    """Numbers that are none do not use up the tries for one that is, however many stand before it."""
    pytest.importorskip("phonenumbers")
    text = "12 a " * 65_600 + "+44 20 7946 0958"  # by default it gives up after 65,535
    assert list(PhoneNumbers().find(text))[-1] == Span(len(text) - 16, len(text), "PHONE")


def test_a_region_that_is_none_is_refused() -> None:
    """A country that phonenumbers does not know is said at once, and how countries are named."""
    pytest.importorskip("phonenumbers")
    with pytest.raises(ConfigurationError, match="two capitals, like 'DE'"):
        PhoneNumbers("Germany")


@pytest.fixture(scope="module")
def presidio() -> Presidio:
    pytest.importorskip("presidio_analyzer")
    return Presidio()


def test_presidio_finds_what_we_do_not(presidio: Presidio) -> None:
    """A type that only Presidio knows is found through it, and what both know has one name."""
    text = "Pay to 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa, or to DE89370400440532013000."
    assert "CRYPTO" not in {span.type for span in Scrubber().find(text)}
    assert Scrubber(presidio).find(text) == [Span(7, 41, "CRYPTO"), Span(49, 71, "IBAN")]


class Analyzer:
    """Be an analyzer that finds nothing."""

    def get_supported_entities(self, _: str) -> list[str]:
        return ["CRYPTO", "DATE_TIME"]

    def analyze(self, text: str, *, entities: list[str], **_: Any) -> list[Any]:
        assert entities == ["CRYPTO"]
        return []


def test_a_pattern_that_presidio_may_have_skipped_masks_the_whole_text() -> None:
    """Presidio passes over a pattern that takes too long: a text that took as long is masked, not let through."""
    text = "mail ana@example.com"
    assert Scrubber(Presidio(Analyzer(), patience=0.0)).find(text) == [Span(0, 20, UNSEARCHED)]
    assert Scrubber(Presidio(Analyzer())).find(text) == [Span(5, 20, "EMAIL")]


@pytest.mark.parametrize(
    ("name", "make"),
    [("phonenumbers", PhoneNumbers), ("presidio_analyzer", Presidio)],
    ids=["phonenumbers", "presidio"],
)
def test_a_missing_package_is_named(name: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package of a detector is not installed, the error says what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'cloister\[(phonenumbers|presidio)\]'"):
        make()


def test_the_lists_are_read_when_they_are_needed() -> None:
    """Importing and making a scrubber reads no list; the first search does."""
    script = (
        "import cloister.scrub as scrub; from cloister.scrub import lists; s = scrub.Scrubber()\n"
        "assert lists.load.cache_info().currsize == 0\n"
        "s.find('Ana')\n"
        "assert lists.load.cache_info().currsize == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_lists_tell_names_from_words() -> None:
    """The packed lists answer for names, words, places and what is none of them, with and without accents."""
    known = lists.load()
    assert known.bits("maria") >> 11 > 20  # a first name, far likelier than a word
    assert known.bits("invoice") >> 6 == 0  # a word and no name
    assert known.bits("lisbon") & 7 >= lists.CITY
    assert known.bits("xqzzkw") == 0
    assert known.bits("josé") >> 11 == known.bits("jose") >> 11 or known.bits("josé") >> 11 > 16
    assert "jennifer" in known.chat
    assert "mark" not in known.chat
    assert "about" in known.ordinary
    assert "maria" not in known.ordinary


def test_the_wheel_carries_the_lists_and_their_notices(tmp_path: Path) -> None:
    """Who installs cloister gets the lists, at most two megabytes of them, and the licences of their sources."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        data = {
            info.filename.rpartition("/")[2]: info for info in archive.infolist() if "/scrub/data/" in info.filename
        }
        notice = archive.read(data["NOTICE"]).decode()
    assert set(data) == {"NOTICE", "chat.txt", "ordinary.txt", "words.bin"}
    assert sum(info.compress_size for info in data.values()) < 2_000_000
    for source in ("Faker", "Census", "symspellpy", "GeoNames", "Creative Commons Attribution 4.0", "MIT licence"):
        assert source in notice, source
    assert all(name in notice for name in data if name != "NOTICE")
