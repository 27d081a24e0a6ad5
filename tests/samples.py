"""One item of the API of each kind that the openai package knows, as whole as it comes back, without its id.

Wherever people's words may stand, `DATA` does.
"""

from __future__ import annotations

from typing import Any

DATA = "write to ana.lopez@mail.example"
IMAGE = "data:image/png;base64,iVBORw0KGgo="
_CALL = {"call_id": "call_1", "status": "completed"}
_TOOL = {"type": "function", "name": "look", "description": DATA, "parameters": {"type": "object"}, "strict": True}

SENT: list[dict[str, Any]] = [
    {"type": "message", "role": "user", "status": "completed", "content": [{"type": "input_text", "text": DATA}]},
    {"type": "message", "role": "system", "status": "completed", "content": [{"type": "input_text", "text": DATA}]},
    {"type": "message", "role": "developer", "status": "completed", "content": [{"type": "input_text", "text": DATA}]},
    {
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [
            {"type": "input_text", "text": DATA, "prompt_cache_breakpoint": {"mode": "explicit"}},
            {"type": "input_image", "image_url": IMAGE, "detail": "original", "file_id": None},
            {"type": "input_image", "image_url": "https://pictures.example/1.png", "detail": "low"},
            {"type": "input_file", "filename": f"{DATA}.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
            {"type": "input_text", "text": ""},
        ],
    },
    {
        "type": "message",
        "role": "assistant",
        "status": "incomplete",
        "phase": "commentary",
        "content": [
            {
                "type": "output_text",
                "text": DATA,
                "annotations": [
                    {"type": "file_citation", "file_id": "file-1", "filename": DATA, "index": 0},
                    {
                        "type": "url_citation",
                        "url": "https://a.example/",
                        "title": DATA,
                        "start_index": 0,
                        "end_index": 5,
                    },
                ],
                "logprobs": [],
            },
            {"type": "refusal", "refusal": DATA},
        ],
    },
    {"type": "function_call", **_CALL, "name": "look", "arguments": f'{{"to": "{DATA}"}}'},
    {"type": "function_call_output", **_CALL, "output": DATA},
    {
        "type": "custom_tool_call",
        "call_id": "call_2",
        "status": "completed",
        "name": "run",
        "input": DATA,
        "namespace": "shell",
    },
    {
        "type": "custom_tool_call_output",
        "call_id": "call_2",
        "status": "completed",
        "output": [{"type": "input_text", "text": DATA}, {"type": "input_image", "image_url": IMAGE, "detail": "auto"}],
        "caller": {"type": "direct"},
    },
]
"""Those of which a model is sent something."""

KEPT: list[dict[str, Any]] = [
    {
        "type": "reasoning",
        "status": "completed",
        "summary": [{"type": "summary_text", "text": DATA}],
        "content": [{"type": "reasoning_text", "text": DATA}],
        "encrypted_content": "gAAAAABo" * 40,
    },
    {
        "type": "file_search_call",
        "status": "completed",
        "queries": [DATA],
        "results": [{"file_id": "file-1", "filename": DATA, "score": 0.5, "text": DATA, "attributes": {"a": 1.5}}],
    },
    {"type": "web_search_call", "status": "failed", "action": {"type": "search", "query": DATA, "queries": [DATA]}},
    {
        "type": "computer_call",
        **_CALL,
        "pending_safety_checks": [{"id": "check_1", "code": "code", "message": DATA}],
        "action": {"type": "type", "text": DATA},
    },
    {
        "type": "computer_call_output",
        **_CALL,
        "output": {"type": "computer_screenshot", "image_url": IMAGE},
        "acknowledged_safety_checks": [{"id": "check_1"}],
    },
    {"type": "tool_search_call", **_CALL, "arguments": {"query": DATA}, "execution": "client"},
    {"type": "tool_search_output", **_CALL, "tools": [_TOOL], "execution": "client"},
    {"type": "additional_tools", "role": "developer", "tools": [_TOOL]},
    {"type": "configuration_update", "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}}},
    {"type": "compaction", "encrypted_content": "gAAAAABo" * 40},
    {"type": "compaction_trigger"},
    {"type": "image_generation_call", "status": "completed", "result": "iVBORw0KGgo=" * 99, "revised_prompt": DATA},
    {
        "type": "code_interpreter_call",
        "status": "completed",
        "code": f"print({DATA!r})",
        "container_id": "cntr_1",
        "outputs": [{"type": "logs", "logs": DATA}, {"type": "image", "url": "https://a.example/1.png"}],
    },
    {
        "type": "local_shell_call",
        **_CALL,
        "action": {"type": "exec", "command": ["echo", DATA], "env": {"WHO": DATA}, "timeout_ms": None},
    },
    {"type": "local_shell_call_output", "status": "completed", "output": DATA},
    {
        "type": "shell_call",
        **_CALL,
        "action": {"commands": [f"echo {DATA}"], "max_output_length": 9, "timeout_ms": 9},
        "environment": None,
    },
    {
        "type": "shell_call_output",
        **_CALL,
        "output": [{"stdout": DATA, "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
        "max_output_length": None,
    },
    {
        "type": "apply_patch_call",
        **_CALL,
        "operation": {"type": "create_file", "path": "a.txt", "diff": f"+{DATA}"},
    },
    {"type": "apply_patch_call_output", **_CALL, "output": DATA},
    {
        "type": "mcp_list_tools",
        "server_label": "shop",
        "tools": [{"name": "buy", "input_schema": {"type": "object"}, "description": DATA}],
    },
    {"type": "mcp_approval_request", "server_label": "shop", "name": "buy", "arguments": f'{{"what": "{DATA}"}}'},
    {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True, "reason": DATA},
    {
        "type": "mcp_call",
        "status": "completed",
        "server_label": "shop",
        "name": "buy",
        "arguments": "{}",
        "output": DATA,
    },
    {"type": "program", "call_id": "call_3", "code": DATA, "fingerprint": "abc"},
    {"type": "program_output", "call_id": "call_3", "result": DATA, "status": "completed"},
]
"""Those that are kept as they are, and that no model is sent."""

STRANGE: list[dict[str, Any]] = [
    {
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav", "said": DATA}}],
    },
    {"type": "hologram_call", "beam": DATA, "depth": [1, None, {"a": 2.5, "not an identifier": DATA}]},
    {"type": "message", "role": "user", "status": "completed", "content": [{"type": "smell", "of": DATA}]},
    {"type": "function_call_output", "call_id": None, "name": "look", "output": DATA, "status": "completed"},
]
"""Those that the package does not know."""
