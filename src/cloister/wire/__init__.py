"""The formats that models are asked and answer in: OpenAI chat, OpenAI Responses, Anthropic Messages.

``read`` takes a whole answer, a `Reader` a streamed one; both give an `Answer`. ``spent`` says what one took that is
refused, ``model_name`` takes only what can be a model's name. ``chat``, ``responses`` and ``anthropic`` put items into
the keyword arguments of the SDKs; ``message`` gives one item's message, ``item`` and ``answer_item`` make items.
Nothing here waits.
"""

from cloister.wire.answers import Answer, Refusal, model_name, read, spent
from cloister.wire.requests import CARRIED, answer_item, anthropic, chat, item, message, responses
from cloister.wire.streams import Reader

__all__ = [
    "CARRIED",
    "Answer",
    "Reader",
    "Refusal",
    "answer_item",
    "anthropic",
    "chat",
    "item",
    "message",
    "model_name",
    "read",
    "responses",
    "spent",
]
