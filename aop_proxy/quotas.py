"""What clients that are not known yet may take: handshake steps in a turn of the loop, handshakes of one address.

In: who wants one. Out: now, later or not at all. Must not know what a handshake is, nor who is connected.
"""

import asyncio
from collections import deque
from ipaddress import IPv6Address, ip_address


class Turns:
    """Lets so many steps run in each turn of the loop; the next ones wait, in order, for the turns after it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, at_most: int) -> None:
        """`at_most` may be changed at any time."""
        self.at_most = at_most
        self._loop = loop
        self._left = at_most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_counting = False

    @property
    def is_any_waiting(self) -> bool:
        """Whether there is more to do than the next turn has room for."""
        return bool(self._waiting)

    async def take(self) -> None:
        """Return when it is the caller's turn."""
        if not self._is_counting:
            self._is_counting = True
            self._left = self.at_most
            self._loop.call_soon(self._begin)
        if self._left:
            self._left -= 1
            return
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _begin(self) -> None:
        """Wake those whose steps are for the turn that begins; a turn that nobody wants ends the counting."""
        left = self.at_most
        while left and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():  # else it was closed while it waited
                waiter.set_result(None)
                left -= 1
        self._left = left
        self._is_counting = left < self.at_most
        if self._is_counting:
            self._loop.call_soon(self._begin)


class Addresses:
    """Handshakes under way from each client address. As many entries as there are of those, so it cannot grow."""

    def __init__(self) -> None:
        """Begin with none."""
        self._under_way: dict[str, int] = {}

    def enter(self, host: str, at_most: int) -> bool:
        """Count one more; False if there are so many already."""
        network = _network(host)
        count = self._under_way.get(network, 0)
        if count >= at_most:
            return False
        self._under_way[network] = count + 1
        return True

    def leave(self, host: str) -> None:
        """Count one less."""
        network = _network(host)
        self._under_way[network] -= 1
        if not self._under_way[network]:
            del self._under_way[network]

    def __len__(self) -> int:
        """How many addresses have any."""
        return len(self._under_way)


def _network(host: str) -> str:
    """An IPv4 address is one client; of IPv6 addresses one client has 2^64 (RFC 6177), so its first half counts."""
    address = ip_address(host.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return host
    return str(address.ipv4_mapped or address.packed[:8].hex())
