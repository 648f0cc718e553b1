"""The backend's first moments under `exec`: becomes another user, ties its life to ours, and is then COMMAND alone.

The parent runs `main` with the arguments PARENT-PID USER COMMAND…, USER empty for whoever we are. Must not know the
proxy; nothing of it is left once COMMAND runs.
"""

import os
import signal
import sys
import warnings  # noqa: F401 - execvp does, when another user may be unable to read this Python's files

from aop_proxy.model import ConfigurationError
from aop_proxy.privileges import become, drop_capabilities, end_with

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""What shells exit with."""


def main() -> None:
    """Become COMMAND."""
    parent, user, *command = sys.argv[1:]
    try:
        if user:
            entry = become(user)
            os.environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
        drop_capabilities()
        end_with(int(parent))
        for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored_by_python, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - what the operator asked for, without a shell
    except FileNotFoundError:
        sys.exit(_complain(f"{command[0]} is not found", NOT_FOUND))
    except (ConfigurationError, OSError) as error:
        sys.exit(_complain(f"{command[0]} cannot be run: {error}", NOT_EXECUTABLE))


def _complain(sentence: str, code: int) -> int:
    print(f"aop-proxy: {sentence}", file=sys.stderr)
    return code
