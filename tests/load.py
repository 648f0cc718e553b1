"""Clients that come one after the other, in several threads, and remember who was not served."""

import threading
from typing import Self

from actors import HELLO, PATIENCE, ask, client_context
from certificates import CredentialFiles


class Load:
    """For the length of a block: each client connects, asks once, and reads to the clean end."""

    def __init__(self, address: tuple[str, int], credentials: CredentialFiles, threads: int = 3) -> None:
        self.served = 0
        self.failures: list[str] = []
        self._address = address
        self._context = client_context(credentials)
        self._over = threading.Event()
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._visit) for _ in range(threads)]

    def _visit(self) -> None:
        while not self._over.is_set():
            try:
                answer = ask(self._address, self._context)
                failure = "" if (answer.data, answer.ending) == (HELLO, "close_notify") else repr(answer)
            except OSError as error:
                failure = repr(error)
            with self._news:
                self.served += not failure
                self.failures += [failure] if failure else []
                self._news.notify_all()

    def wait_for(self, more: int) -> None:
        """Until so many more were served, or one was not."""
        with self._news:
            enough = self.served + more
            in_time = self._news.wait_for(lambda: self.served >= enough or self.failures, PATIENCE)
            assert in_time, f"{self.served} of {enough} were served"
            assert self.failures == []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
        if kind is None:
            assert self.failures == []
