"""An application that says what it knows of its visitor."""

import json
from collections.abc import Callable, Iterable
from typing import Any


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """Answer every request."""
    visitor = {
        "scheme": environ["wsgi.url_scheme"],  # gunicorn takes it from X-Forwarded-Proto
        "address": environ["HTTP_CF_CONNECTING_IP"],  # behind the gate only the edge can have said it
    }
    body = json.dumps(visitor).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
