"""An application that says what it knows of its visitor."""

import flask

application = flask.Flask(__name__)


@application.get("/")
def visitor() -> dict[str, str | None]:
    """Say what waitress knows, which takes it from X-Forwarded-Proto and the last entry of X-Forwarded-For."""
    return {"scheme": flask.request.scheme, "address": flask.request.remote_addr}
