"""An application that says what it knows of its visitor."""

import json
from collections.abc import Awaitable, Callable
from typing import Any


async def application(
    scope: dict[str, Any],
    _: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer every request."""
    if scope["type"] != "http":
        return
    # Both are uvicorn's, which takes them from X-Forwarded-Proto and the last entry of X-Forwarded-For.
    body = json.dumps({"scheme": scope["scheme"], "address": scope["client"][0]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
