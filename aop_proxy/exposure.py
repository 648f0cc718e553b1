"""Ways around the gate that a configuration leaves open: advice, for `check` and for the log.

In: settings, and the kernel's own list of listening sockets (no socket is opened). Out: `Problem`s that stop nothing.
Standard library only. Must not know certificates.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from aop_proxy.model import Admin, Problem, Settings
from aop_proxy.occupancy import Address, Place, listening

_HTTP = 80


def advise(settings: Settings) -> list[Problem]:
    """Everything there is to say now."""
    return [
        *while_observing(settings),
        *open_status(settings.admin),
        *open_backends(settings, (place for place, _ in listening())),
    ]


def while_observing(settings: Settings) -> Iterator[Problem]:
    """The gate itself may stand open."""
    if settings.enforcement == "observe":
        yield Problem(
            "enforcement",
            "`observe` keeps nobody out who shows no certificate, or one that your rules do not list: write `enforce`"
            " and restart once no line in the log says `would_refuse`",
        )


def open_status(admin: Admin | None) -> Iterator[Problem]:
    """Who was refused, and by what certificates clients are judged, may be read by whoever asks."""
    if admin is None or admin.path or "status" not in admin.shows:
        return
    address = _address(admin.host)
    if address is None or not address.is_loopback:
        yield Problem(
            "admin",
            "whoever reaches this address reads who was refused, and what is behind this gate: listen on 127.0.0.1 or"
            " on a unix socket, or write `only: [health, metrics]` beside the address",
        )


def open_backends(settings: Settings, places: Iterable[Place]) -> Iterator[Problem]:
    """Backends of this host that strangers may reach without us, and whatever answers to plain HTTP beside them."""
    own = {(_address(listen.host), listen.port) for listen in settings.listen}
    exposed = [place for place in places if not place[0].is_loopback and place not in own]
    told: set[int] = set()
    is_local = False
    for index, site in enumerate(settings.sites):
        for upstream in site.upstream:
            host = _address(upstream.host)
            on_loopback = bool(upstream.path) or (host is not None and host.is_loopback)
            is_local = is_local or on_loopback
            for address, port in exposed:
                if port == upstream.port and (on_loopback or address == host) and port not in told:
                    told.add(port)
                    yield Problem(
                        f"sites[{index}].upstream",
                        f"port {port} is open on {address} too, where visitors can walk around this gate: have the"
                        " backend listen on 127.0.0.1 or on a unix socket only, or shut that port in the firewall",
                    )
    for address, port in exposed:
        if port == _HTTP and is_local and port not in told:
            told.add(port)
            yield Problem(
                "sites",
                f"something listens on port {_HTTP} of {address}: if it shows more than redirections, visitors can walk"
                " around this gate in plain HTTP",
            )


def _address(host: str) -> Address | None:
    """The address that a host is written as; None for a name, which is another host's as far as we know."""
    try:
        return ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None
