"""Who answers. Each provider is imported when it is first named."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cloister.errors import ConfigurationError
from cloister.providers.base import Provider

NAMES = ("offline", "holysheep", "openai", "deepseek", "vllm", "ollama", "anthropic")
_PARTS = ("name", "model", "complete", "stream", "close")


def connect(provider: str | Provider | None, *, environ: Mapping[str, str] = os.environ) -> Provider | None:
    """Return the provider of that name, with its key from *environ*; a provider, and None, as they are.

    Raises `ConfigurationError` for an unknown name, which it answers with the known ones, for a missing or
    malformed key, and for an object that is no provider.
    """
    if provider is None:
        return None
    if not isinstance(provider, str):
        if isinstance(provider, type):
            raise ConfigurationError(
                f"{provider.__name__} is a class; give a provider made of it: {provider.__name__}(…)"
            )
        if missing := [name for name in _PARTS if not hasattr(provider, name)]:
            raise ConfigurationError(f"{type(provider).__name__} is no provider: it lacks {', '.join(missing)}")
        return provider
    if provider not in NAMES:
        del environ  # a traceback with locals would show every secret in it
        raise ConfigurationError(f"unknown provider; it must be one of {', '.join(NAMES)}, or a provider object")
    if provider == "offline":
        from cloister.providers.offline import Offline

        return Offline()
    if provider == "anthropic":
        from cloister.providers import anthropic, http

        key = http.Key(environ.get(anthropic.VARIABLE, ""))
        del environ
        return anthropic.Anthropic(api_key=key)
    from cloister.providers import http, openai

    key = http.Key(environ.get(openai.PROFILES[provider].variable, ""))
    del environ
    return openai.OpenAICompatible(provider, api_key=key)
