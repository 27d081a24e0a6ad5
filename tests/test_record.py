"""What turns and reads put on record: every kind once, with its values, and never a word of what was said."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.fakes import House, Parrot, Watched, opened
from tests.test_budgets import PRICES

from cloister import Budget, Limits, Scrub, Tenant, client, scope, upkeep
from cloister.audit import EVENTS, Entry
from cloister.costs.report import Report
from cloister.errors import (
    BudgetExceeded,
    ConfigurationError,
    ProviderError,
    SessionBusy,
    SessionExpired,
    SessionNotFound,
    TokenInvalid,
)
from cloister.model import Item
from cloister.stores.memory import MemoryStore

SECRET = "the-canary-sings-at-noon"
_CHAT = {
    "model": "parrot-2",
    "choices": [{"message": {"role": "assistant", "content": "Fine."}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    },
}


async def last(house: House, kind: str) -> tuple[Entry, dict[str, Any]]:
    """Give the newest entry of a kind, and its detail."""
    entries = [entry for entry in await house.entries() if entry.event == kind]
    return entries[-1], json.loads(entries[-1].detail)


async def test_a_turn_says_what_it_used(url: str) -> None:
    """The entry of a turn names provider, model and every kind of token."""
    async with opened(url) as house:
        session = await house.ana.start()
        house.provider.answer = _CHAT
        await session.send(SECRET)
        entry, detail = await last(house, "turn.committed")
        counts = {"input_tokens": 11, "output_tokens": 3, "cached_tokens": 4, "reasoning_tokens": 2}
        assert {name: detail[name] for name in counts} == counts
        assert (detail["provider"], detail["model"], detail["items"]) == ("parrot", "parrot-2", 2)
        assert "estimated" not in detail
        assert entry.owner.startswith("a_")


async def test_what_was_estimated_is_marked(url: str) -> None:
    """Where the provider does not tell, the entry says that the numbers are an estimate."""
    async with opened(url) as house:
        await (await house.ana.start()).send("Hello")
        assert (await last(house, "turn.committed"))[1]["estimated"] is True


async def test_a_failed_turn_says_what_it_spent(url: str) -> None:
    """A turn that fails has an entry with its reason; one that asked nobody has spent nothing."""
    async with opened(url) as house:
        session = await house.ana.start()
        house.provider.answer = ProviderError("down")
        with pytest.raises(ProviderError):
            await session.send(SECRET)
        _, detail = await last(house, "turn.failed")
        asked = {"provider": "parrot", "model": "parrot-1"}
        assert detail == {"reason": "ProviderError", **asked, "input_tokens": 0, "output_tokens": 0}


@pytest.mark.parametrize("odd", [SECRET + " " + SECRET, "x\ny", "x" * 129, "{model}", "\ud800"])
async def test_the_name_of_a_model_is_no_place_for_words(odd: str) -> None:
    """What a caller or a service gives for a model's name is on record only if it can be one."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        house.provider.answer = {**_CHAT, "model": odd}
        await session.send("Hello", model=odd)
        async with session.turn("Hello", model=odd) as turn:
            await turn.finish("Fine.")
        async with session.turn("Hello", model=odd):
            pass
        kinds = ("turn.committed", "turn.failed")
        details = [json.loads(entry.detail) for entry in await house.entries() if entry.event in kinds]
        assert len(details) == 3
        assert not any("model" in detail for detail in details)


async def test_names_of_models_are_not_gathered() -> None:
    """Callers may name a new model with every turn: nothing grows with it."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        for number in range(50):
            await session.send("Hello", model=f"gpt-4.1-{number}")
            await session.send("Hello", model=f"own-{number}")
        assert len(house.cloister.services._prepared) == 1


async def test_the_content_digest_is_the_sessions_own(url: str) -> None:
    """The same words have the same digest in one session, and another in any other."""
    async with opened(url, scrub=None, leaks=None) as house:
        first, second = await house.ana.start(), await house.ana.start()
        seen = []
        for session in (first, first, second):
            await session.append(Item("user", SECRET))
            seen.append((await last(house, "items.appended"))[1]["content"])
        assert seen[0] == seen[1] != seen[2]
        await first.append(Item("user", SECRET + "."))
        assert (await last(house, "items.appended"))[1]["content"] != seen[0]


async def test_a_read_is_on_record(url: str) -> None:
    """Whoever reads a history leaves an entry that says how much was read."""
    async with opened(url) as house:
        session = await house.ana.start()
        await session.send("Hello")
        await session.history(masked=True)
        assert (await last(house, "history.read"))[1] == {"items": 2, "masked": True}


async def test_a_refused_turn_is_on_record(url: str) -> None:
    """A turn that is refused before a model is asked says why; one that is admitted does not."""
    async with opened(url, context_tokens=60) as house:
        session = await house.ana.start()
        with pytest.raises(BudgetExceeded):
            await session.send("long " * 200)
        assert (await last(house, "turn.refused"))[1] == {"reason": "BudgetExceeded"}
        house.clock.move(days=2)
        with pytest.raises(SessionExpired):
            await session.send("Hello", on_expired="raise")
        assert (await last(house, "turn.refused"))[1] == {"reason": "SessionExpired"}
        assert (await house.events()).count("turn.refused") == 2


async def test_a_busy_session_is_on_record() -> None:
    """A turn that waits too long for the one before it is refused, and says so."""
    from datetime import timedelta

    async with opened("memory://", limits=Limits(turn_wait=timedelta(0))) as house:
        session = await house.ana.start()
        async with session.turn("first") as turn:
            with pytest.raises(SessionBusy):
                await session.send("second")
            await turn.finish("done")
        assert (await last(house, "turn.refused"))[1] == {"reason": "SessionBusy"}


async def test_where_a_call_came_from(url: str) -> None:
    """Inside `scope.source`, entries say where the call came from; outside they do not."""
    async with opened(url) as house:
        with scope.source("10.0.0.7 POST /chat"):
            session = await house.ana.start()
            await session.send("Hello")
        assert (await last(house, "turn.committed"))[1]["source"] == "10.0.0.7 POST /chat"
        await session.send("Hello")
        assert "source" not in (await last(house, "turn.committed"))[1]
        with scope.source("x" * 999 + "\n"):
            await session.history()
        assert (await last(house, "history.read"))[1]["source"] == "x" * 200


async def test_every_entry_says_where_its_call_came_from(url: str) -> None:
    """All that a call puts on record, at once or in the background, says where it came from."""
    async with opened(url, context_tokens=100) as house:
        before = len(await house.entries())
        with scope.source("a job"):
            session = await house.ana.start(title="ana@example.org")
            await session.send("Mail me: ana@example.org")
            with pytest.raises(BudgetExceeded):
                await session.send("long " * 200)
            with pytest.raises((SessionNotFound, TokenInvalid)):
                await house.ben.resume(session.id)
            await session.history()
            written = (await house.entries())[before:]
        assert {"data.replaced", "turn.refused", "access.refused", "access.foreign"} <= {one.event for one in written}
        assert all(json.loads(entry.detail)["source"] == "a job" for entry in written)


async def test_housekeeping_comes_from_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloister that is opened in somebody's request, as after a fork, does not sweep in their name for ever."""
    from datetime import timedelta

    swept: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def sweep(_: object) -> int:
        swept.put_nowait(scope.source_of())
        return 0

    monkeypatch.setattr(client, "_HOUSEKEEPING", timedelta(0))
    monkeypatch.setattr(upkeep, "sweep", sweep)
    with scope.source("a request of ana's"):
        async with opened("memory://"):
            assert await swept.get() == {}
            assert scope.source_of()


@pytest.mark.plain_ids
async def test_a_session_id_in_a_path_is_not_on_record(url: str) -> None:
    """Whoever names the route by its path puts no session id on record with it."""
    async with opened(url) as house:
        session = await house.ana.start()
        for path in (f"GET /chats/{session.id}?x=1", "x" * 180 + session.id, f"/ct_{'a' * 300}"):
            with scope.source(path):
                await session.history()
        details = [json.loads(entry.detail) for entry in await house.entries() if entry.event == "history.read"]
        assert details[0]["source"] == "GET /chats/cs_…?x=1"
        assert details[1]["source"] == "x" * 180 + "cs_…"
        assert details[2]["source"] == "/ct_…"


async def test_a_path_that_is_no_text_hides_no_costs() -> None:
    """Half a surrogate pair in a path makes no entry unreadable to whoever sums up; other than text is refused."""
    async with opened("memory://", prices=PRICES) as house:
        house.provider.answer = _CHAT
        session = await house.ana.start()
        with scope.source("GET /\udc80"):
            await session.send("Hello")
        report = Report("user", {})
        for entry in await house.entries():
            report.add(entry)
        assert (report.total.turns, report.unreadable) == (1, 0)
        with pytest.raises(TypeError, match="is a text"), scope.source(b"GET /"):  # type: ignore[arg-type]
            pass


async def test_no_entry_carries_words_or_ids(url: str) -> None:
    """Neither what was said, nor titles, nor session ids stand in any entry; every value is one its kind may carry."""
    async with opened(url, keep_failed=True) as house:
        session = await house.ana.start(title=SECRET, system=SECRET, metadata={SECRET: SECRET})
        ids = [session.id]
        await session.send(SECRET, idempotency_key=SECRET)
        async with session.stream(SECRET, documents=[SECRET]) as stream:
            async for _ in stream:
                pass
        await session.append({"role": "user", "content": SECRET})
        await session.update(title=SECRET + SECRET)
        item = (await session.history())[1]
        await session.hide(item.id)
        house.provider.answer = ProviderError(SECRET)
        with pytest.raises(ProviderError):
            await session.send(SECRET)
        ids.append(session.id)
        await session.end()
        written = await house.entries()
        for entry in written:
            text = repr(entry)
            assert SECRET not in text
            assert not any(name in text for name in ids)
            known = EVENTS[entry.event]
            assert known.counts or json.loads(entry.detail).keys() <= {*known.detail, "source"}


@pytest.mark.parametrize("late", ["history.read", "turn.refused", "budget.exceeded"])
async def test_no_late_entry_brings_an_erased_name_back(late: str) -> None:
    """Whatever was under way while a user was erased goes on record without the name, and not under a new one."""
    watched = Watched(MemoryStore())
    budget = Budget(user_daily="0.001") if late == "budget.exceeded" else None
    async with opened(watched.store, context_tokens=60, budget=budget, prices=PRICES) as house:
        session = await house.ana.start()

        async def erased(real: Any, args: Any, options: Any) -> Any:
            answer = await real(*args, **options)
            await house.ana.erase()
            return answer

        watched.answers["items" if late == "history.read" else "load"] = erased
        if late == "history.read":
            await session.history()
        else:
            with pytest.raises(BudgetExceeded):
                await session.send("long " * 200 if late == "turn.refused" else "Hello")
        assert (await last(house, late))[0].owner == ""
        assert house.ana.owner not in (await house.cloister.store.audit_owners()).values()


class TestTenants:
    """What is set for one tenant holds for its users and nobody else's."""

    async def test_have_settings_of_their_own(self) -> None:
        """Provider, limits, personal data, window and failed questions can differ by tenant."""
        from datetime import timedelta

        acme = Parrot()
        acme.name = "acme-model"
        different = Tenant(
            provider=acme,
            limits=Limits(idle_timeout=timedelta(minutes=1)),
            scrub=Scrub(where="off"),
            context_tokens=50,
            keep_failed=True,
        )
        async with opened("memory://", tenancy="required", tenants={"acme": different}) as house:
            ana, ben = house.cloister.user("ana", tenant="acme"), house.cloister.user("ben", tenant="other")
            hers, his = await ana.start(), await ben.start()
            await hers.send("Mail me: ana@example.org")
            await his.send("Mail me: ben@example.org")
            assert "ana@example.org" in str(acme.requests[-1].messages)
            assert "ben@example.org" not in str(house.provider.requests[-1].messages)
            assert len(acme.requests) == len(house.provider.requests) == 1
            with pytest.raises(BudgetExceeded):
                await hers.send("long " * 200)
            await his.send("long " * 200)
            acme.answer = house.provider.answer = ProviderError("down")
            for session, kept in ((hers, 3), (his, 4)):
                with pytest.raises(ProviderError):
                    await session.send("Anybody?")
                assert len(await session.history()) == kept
            house.clock.move(minutes=2)
            with pytest.raises(SessionExpired):
                await hers.history()
            assert await his.history()
        assert acme.closed
        assert house.provider.closed

    async def test_nothing_reaches_another_tenants_model(self) -> None:
        """Whatever way a session is come by, held, listed, repeated or renewed: its tenant's model is asked, alone."""
        models = {name: Parrot() for name in ("acme", "other")}
        tenants = {name: Tenant(provider=model) for name, model in models.items()}
        async with opened("memory://", tenancy="required", tenants=tenants) as house:
            for tenant in (*models, "third"):
                user, text = house.cloister.user("ana", tenant=tenant), f"of {tenant}"
                session = await user.start()
                for _ in range(2):
                    await session.send(text, idempotency_key="k")
                async with session.stream(text) as stream:
                    assert [piece async for piece in stream]
                house.clock.move(hours=13)
                reply = await session.send(text)
                assert reply.renewed
                await reply.session.send(text)
                for listed in await user.sessions():
                    await listed.send(text)
            for tenant, model in (*models.items(), ("third", house.provider)):
                asked = [request.messages[-1]["content"] for request in model.requests]
                assert asked == [f"of {tenant}"] * 5

    async def test_renewals_keep_the_tenants_limits(self) -> None:
        """A session that takes the place of one that timed out has its tenant's limits too."""
        from datetime import timedelta

        short = Tenant(limits=Limits(idle_timeout=timedelta(minutes=1)))
        async with opened("memory://", tenancy="required", tenants={"acme": short}) as house:
            session = await house.cloister.user("ana", tenant="acme").start()
            house.clock.move(minutes=2)
            reply = await session.send("Hello")
            assert reply.renewed
            assert reply.session.expires_at == house.clock.now + timedelta(minutes=1)

    async def test_need_tenancy(self) -> None:
        """Settings for tenants in a cloister without tenants are a mistake that is named."""
        with pytest.raises(ConfigurationError, match="tenancy"):
            async with opened("memory://", tenants={"acme": Tenant()}):
                pass

    async def test_cannot_give_up_a_protection_unseen(self) -> None:
        """What is switched off for one tenant is on record as what is switched off for all."""
        off = Tenant(scrub=Scrub(where="off"), limits=Limits(None, None))
        async with opened("memory://", tenancy="required", tenants={"acme": off, "other": Tenant()}) as house:
            details = [json.loads(entry.detail) for entry in await house.entries() if entry.event == "protection.off"]
        assert details == [
            {"what": "limits", "option": "idle_timeout=None, absolute_timeout=None of tenant acme"},
            {"what": "personal data", "option": "scrub=None of tenant acme"},
        ]

    @pytest.mark.parametrize("name", ["", " acme", "ac\x00me", "x" * 257, "e\u0301"])
    async def test_are_named_as_tenants_can_be(self, name: str) -> None:
        """Settings under a name that no tenant can have would hold for nobody: they are refused."""
        with pytest.raises(ConfigurationError, match="tenants="):
            async with opened("memory://", tenancy="required", tenants={name: Tenant()}):
                pass

    async def test_a_window_must_hold_something(self) -> None:
        """A tenant's window is checked like everybody's."""
        with pytest.raises(ConfigurationError, match="context_tokens"):
            Tenant(context_tokens=0)
