"""Ids as the API shows them, and back. One shape each: whatever else comes is no id, and looks like an absent one."""

from __future__ import annotations

import re

_RANDOM, _PLACE, _TAG = "([A-Za-z0-9_-]{43})", "(0|[1-9][0-9]{0,14})", "([0-9a-f]{12})"
CONVERSATION = f"conv_{_RANDOM}"
RESPONSE = f"resp_{_RANDOM}_{_PLACE}_{_TAG}"
ITEM = f"[a-z]+_{_PLACE}_{_TAG}(?:_[1-9][0-9]{{0,3}})?"
_CONVERSATION, _RESPONSE, _ITEM = re.compile(CONVERSATION), re.compile(RESPONSE), re.compile(ITEM)

NONE = ""
"""What stands for a malformed id: it is looked up as any other, and refused as any other that is not there."""


def conversation(session_id: str) -> str:
    """Give the API's id of a session."""
    return "conv_" + session_id.removeprefix("cs_")


def session(conversation_id: str) -> str:
    """Give the session id behind the API's id; for a malformed one, what is no id of any session."""
    match = _CONVERSATION.fullmatch(conversation_id)
    return "cs_" + match[1] if match else NONE


def response(session_id: str, item_id: str) -> str:
    """Give the id of a response, which is the turn of a session that ended with the item."""
    return f"resp_{session_id.removeprefix('cs_')}_{item_id.removeprefix('item_')}"


def turn(response_id: str) -> tuple[str, str]:
    """Give session and item behind the id of a response; for a malformed one, what is no id of any session."""
    match = _RESPONSE.fullmatch(response_id)
    return ("cs_" + match[1], f"item_{match[2]}_{match[3]}") if match else (NONE, NONE)


def item(item_id: str, prefix: str, index: int = 0) -> str:
    """Give the API's id of the item that is the *index*th of those that an item of a session is to the API."""
    return f"{prefix}_{item_id.removeprefix('item_')}{f'_{index}' if index else ''}"


def holding(name: str) -> str:
    """Give the item of a session in which the API's item lies; for a malformed id, what is no id of any item."""
    match = _ITEM.fullmatch(name)
    return f"item_{match[1]}_{match[2]}" if match else NONE
