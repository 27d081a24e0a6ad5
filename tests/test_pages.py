"""Items from either end, one by one, several hidden at once, and a branch from any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.fakes import House, Watched, opened, texts, told

from cloister import stores
from cloister.errors import SessionExpired
from cloister.session import Session

IBAN = "DE89 3704 0044 0532 0130 00"


@pytest.fixture
async def house(url: str) -> AsyncIterator[House]:
    """Open a store."""
    async with opened(url) as house:
        yield house


async def filled(house: House, count: int = 10, system: str | None = None) -> Session:
    """A session of *count* items, every other one of the model's."""
    roles = ("user", "assistant")
    return await house.ana.start(
        system=system, items=[{"role": roles[n % 2], "content": f"item {n}"} for n in range(count)]
    )


@pytest.mark.parametrize("size", [1, 3, 10, 100])
async def test_newest_first_is_oldest_first_turned_round(house: House, size: int) -> None:
    """However large the pages are, hidden items left out, from a cursor too."""
    session = await filled(house, 11)
    items = await session.history()
    await session.hide(items[4].id, items[5].id, items[10].id)
    wanted = [item.text for number, item in enumerate(items) if number not in (4, 5, 10)][::-1]
    found: list[str] = []
    after = None
    for _ in range(20):
        page = await session.history(limit=size, after=after, order="desc")
        found += texts(page)
        if len(page) < size:
            break
        after = page[-1].id
    assert found == wanted
    assert texts(await session.history(limit=2, after=items[6].id, order="desc")) == ["item 3", "item 2"]


async def test_the_newest_are_there_whoever_said_them(house: House) -> None:
    """A handle that does not know of later items gives them all the same; an empty session gives none."""
    session = await filled(house, 4)
    if "token" in house.cloister.store.url:
        return
    other = await house.ana.resume(session.id)
    await session.append([{"role": "user", "content": f"later {n}"} for n in range(5)])
    assert texts(await other.history(limit=2, order="desc")) == ["later 4", "later 3"]
    assert await (await house.ana.start()).history(order="desc") == []


async def test_a_page_costs_the_same_from_either_end() -> None:
    """One read and one entry, in a short session and in a long one."""
    watched = Watched(stores.connect("memory://"))
    async with opened(watched.store) as house:
        for count in (10, 2_000):
            session = await filled(house, count)
            for order in ("asc", "desc"):
                watched.calls.clear()
                assert len(await session.history(limit=5, order=order)) == 5
                asked = [options for name, _, options in watched.calls if name == "items"]
                assert watched.names == ["items", "record"]
                assert asked[0]["limit"] == 5


async def test_one_item(house: House) -> None:
    """By its id, as its owner knows it, and on record; one that is hidden, or none, is a ValueError."""
    session = await house.ana.start()
    reply = await session.send(f"My account is {IBAN}.")
    assert await session.item(reply.items[0].id) == reply.items[0]
    assert (await session.item(reply.items[0].id)).text == f"My account is {IBAN}."
    assert (await house.events())[-1] == "history.read"
    await session.hide(reply.items[0].id)
    other = await (await house.ben.start()).send("x")
    for wrong in (reply.items[0].id, other.items[0].id, "item_9_000000000000", "item_0_000000000000", "x", ""):
        with pytest.raises(ValueError, match="no such item"):
            await session.item(wrong)


async def test_an_item_of_a_session_that_is_over(house: House) -> None:
    """Is gone, as its history is."""
    session = await house.ana.start()
    reply = await session.send("question")
    house.clock.move(hours=1)
    with pytest.raises(SessionExpired):
        await session.item(reply.items[0].id)


async def test_several_are_hidden_in_one_commit_or_none(house: House) -> None:
    """One that is not there leaves all where they are."""
    session = await filled(house)
    ids = [item.id for item in await session.history()]
    version = session.version
    with pytest.raises(ValueError, match="no such item"):
        await session.hide(ids[0], "item_3_000000000000")
    assert (len(await session.history()), session.version) == (10, version)
    await session.hide(*ids[2:5])
    assert texts(await session.history()) == [f"item {n}" for n in (0, 1, 5, 6, 7, 8, 9)]
    assert session.version == version + 1
    assert (await house.events()).count("item.hidden") == 3


async def test_a_branch_goes_on_from_an_item(house: House) -> None:
    """It holds what was said up to there, masked anew, under ids of its own; the first session stays as it is."""
    session = await house.ana.start(system="Be kind.")
    first = await session.send(f"My account is {IBAN}.", remember={"a": 1})
    await session.send("second")
    before = await told(session)
    branch = await session.branch(first.items[-1].id)
    assert len(await house.ana.sessions()) == 1
    reply = await branch.send("other")
    assert texts(await branch.history()) == [*before[:3], "other", reply.text]
    assert (await branch.history())[2].extra == {"response": {"a": 1}}
    assert await told(session) == before
    assert branch.stable_id != session.stable_id
    assert IBAN not in house.provider.seen
    assert not {item.id for item in await branch.history()} & {item.id for item in await session.history()}


async def test_a_branch_of_a_long_session_is_bounded() -> None:
    """It reads and holds no more than a window, and begins with what a user said."""
    watched = Watched(stores.connect("memory://"))
    async with opened(watched.store, context_tokens=500) as house:
        session = await filled(house, 3_000, system="Be kind.")
        item = (await session.history(limit=1, after=(await session.history(limit=500))[-1].id))[0]
        watched.calls.clear()
        branch = await session.branch(item.id)
        assert sum(options["limit"] for name, _, options in watched.calls if name == "items") <= 202
        await branch.send("next")
        held = await branch.history()
        assert held[0].text == "Be kind."
        assert held[1].role == "user"
        assert held[-3].text == item.text
        assert 10 < len(held) < 110


async def test_a_branch_leaves_out_what_is_hidden(house: House) -> None:
    """And cannot be made of it."""
    session = await filled(house, 6)
    ids = [item.id for item in await session.history()]
    await session.hide(ids[2], ids[3])
    branch = await session.branch(ids[5])
    await branch.send("next")
    assert (await told(branch))[:4] == ["item 0", "item 1", "item 4", "item 5"]
    with pytest.raises(ValueError, match="no such item"):
        await session.branch(ids[2])


async def test_nobody_branches_from_anothers_session(house: House) -> None:
    """An item id of one session names nothing in another."""
    other = await (await house.ben.start()).send("secret")
    session = await filled(house)
    with pytest.raises(ValueError, match="no such item"):
        await session.branch(other.items[0].id)


@pytest.mark.parametrize("order", ["up", None])
async def test_another_order_is_refused(house: House, order: str) -> None:
    """There are two."""
    session = await filled(house)
    with pytest.raises(ValueError, match="order"):
        await session.history(order=order)  # type: ignore[arg-type]
