"""Ask a provider: whatever goes wrong in it is a `ProviderError`, and no call is left open."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator
from typing import Any

from cloister.errors import CloisterError, ProviderError
from cloister.providers.base import Provider, Request


async def answered(provider: Provider, request: Request) -> Any:
    """Ask *provider*; whatever goes wrong in it is a `ProviderError`."""
    try:
        return await provider.complete(request)
    except CloisterError:
        raise
    except Exception as error:
        raise _failed(provider, error) from error


async def streamed(provider: Provider, request: Request) -> AsyncGenerator[Any, None]:
    """Ask *provider* for a stream; whatever goes wrong in it is a `ProviderError`."""
    source = provider.stream(request)
    try:
        async for chunk in source:
            yield chunk
    except CloisterError:
        raise
    except Exception as error:
        raise _failed(provider, error) from error
    finally:
        await close(source)


def _failed(provider: Provider, error: Exception) -> ProviderError:
    return ProviderError(
        f"the provider {provider.name} failed with {type(error).__name__}; see the error behind this one"
    )


async def close(source: Any) -> None:
    """Close a stream that may not have been read to its end, so that its call is cancelled."""
    close = getattr(source, "aclose", None) or getattr(source, "close", None)
    if close is not None:
        closing = close()
        if inspect.isawaitable(closing):
            await closing
