"""The promises as tests, for any store and any provider: subclass, give a fixture, run pytest.

::

    class TestMine(StoreConformance):
        @pytest.fixture
        async def store(self) -> AsyncIterator[Store]:
            store = MyStore()
            await store.open()
            yield store
            await store.close()

The fixtures and tests are coroutines: set ``asyncio_mode = auto`` for pytest-asyncio. Nothing here is optional.
"""

from cloister.testing.credentials import sealed_credential
from cloister.testing.providers import ProviderConformance
from cloister.testing.rows import LOOKALIKES, START, FakeClock, grown, load, nonce, sealed_items, sealed_session
from cloister.testing.stores import StoreConformance, entries_of

__all__ = [
    "LOOKALIKES",
    "START",
    "FakeClock",
    "ProviderConformance",
    "StoreConformance",
    "entries_of",
    "grown",
    "load",
    "nonce",
    "sealed_credential",
    "sealed_items",
    "sealed_session",
]
