"""A TLS client that sends and receives at the same time, as every real client does with a large body."""

import select
import ssl
from collections.abc import Callable, Generator, Iterable

from actors import PATIENCE, TlsClient


class DuplexClient(TlsClient):
    """A `TlsClient` that can exchange two streams at once."""

    def exchange(
        self, pieces: Iterable[bytes], portion: Callable[[], int] = lambda: 1 << 20
    ) -> Generator[bytes, None, None]:
        """Send the pieces and yield what arrives, until all is sent and the server has ended with close_notify.

        Each piece is written to TLS at once; `portion` says how many bytes the next system call may send. When the
        server takes no more, what it has said is still read. Raises as `receive` does, `TimeoutError` if nothing moves.
        """
        source, unsent, ended = iter(pieces), memoryview(b""), False
        self.sock.setblocking(False)
        while True:
            if not ended:
                ended = yield from self._arrived()
            if not unsent and (piece := next(source, None)) is not None:
                self.tls.write(piece)
                unsent = memoryview(self._out.read())
            if ended and not unsent:
                return
            readable, writable, _ = select.select(
                [] if ended else [self.sock], [self.sock] if unsent else [], [], PATIENCE
            )
            if not readable and not writable:
                raise TimeoutError(f"nothing moved for {PATIENCE} s")
            if writable:
                try:
                    unsent = unsent[self.sock.send(unsent[: portion()]) :]
                except (BrokenPipeError, ConnectionResetError):
                    source, unsent = iter(()), memoryview(b"")
            if readable:
                self._feed()

    def _arrived(self) -> Generator[bytes, None, bool]:
        """Yield the plaintext of what has been fed; whether the server has ended."""
        try:
            while data := self.tls.read(262144):
                yield data
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError:
            pass
        return True
