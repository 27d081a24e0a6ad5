"""Redis and Redis Cluster: the contract on real servers."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from cloister import stores
from cloister.stores.base import Store
from cloister.testing import StoreConformance


class TestRedis(StoreConformance):
    @pytest.fixture
    async def store(self, redis: str) -> AsyncIterator[Store]:
        store = stores.connect(f"redis://{redis}/0?prefix={secrets.token_hex(4)}:")
        await store.open()
        yield store
        await store.close()


class TestCluster(StoreConformance):
    @pytest.fixture
    async def store(self, redis_cluster: str) -> AsyncIterator[Store]:
        store = stores.connect(f"redis+cluster://{redis_cluster}?prefix={secrets.token_hex(4)}:")
        await store.open()
        yield store
        await store.close()
