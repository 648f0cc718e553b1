"""A file of text by key: the settings it makes, or every problem with its path."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from aop_proxy.config import load, load_file
from aop_proxy.document import parse_document
from aop_proxy.model import (
    Admin,
    Clients,
    ConfigurationError,
    Dial,
    Http,
    Limits,
    Listen,
    Log,
    Mode,
    Reload,
    Settings,
    Site,
    Timeouts,
    Upstream,
    UpstreamTls,
)
from aop_proxy.notation import upstream
from aop_proxy.schema import keys

SCHEMES = "write `http[s]://HOST:PORT` or `unix:/path`"
CONFIGURATIONS = Path(__file__).parent / "configurations"


def problems(text: str) -> list[str]:
    document, found = parse_document(text.encode())
    with pytest.raises(ConfigurationError) as caught:
        load(document, "/etc/aop", found)
    return [str(problem) for problem in caught.value.problems]


def problems_of_site(text: str) -> list[str]:
    """Problems of one more thing in a site that is right."""
    return problems(f"{{listen: ['a:1'], sites: [{{certificate: c, upstream: 'http://a', {text}}}]}}")


def problems_of_sites(*texts: str) -> list[str]:
    sites = ", ".join(f"{{certificate: c, {text}}}" for text in texts)
    return problems(f"{{listen: ['a:1'], sites: [{sites}]}}")


def problems_of_file(text: str) -> list[str]:
    """Problems of one more thing in a file that is right."""
    return problems(f"listen: ['a:1']\nsites: [{{certificate: c, upstream: 'http://a'}}]\n{text}")


def test_defaults_are_those_of_the_settings(tmp_path: Path) -> None:
    """A file with nothing but what is required gives the defaults of the frozen values."""
    (tmp_path / "aop.yaml").write_text("listen: ['[::]:443']\nsites: [{certificate: a.pem, upstream: 'http://a'}]")
    certificate = str(tmp_path / "a.pem")
    expected = Settings((Listen("::", 443),), (Site(certificate, certificate, (upstream("http://a"),)),))
    assert expected == load_file(str(tmp_path / "aop.yaml"))


def test_every_key() -> None:
    """Each key reaches its place; paths start at the file's directory."""
    expected = Settings(
        listen=(
            Listen("0.0.0.0", 8443),
            Listen("::", 8443),
            Listen("localhost", 9443, ("10.0.0.0/8", "2001:db8::/32")),
        ),
        sites=(
            Site(
                certificate=f"{CONFIGURATIONS}/example.pem",
                private_key=f"{CONFIGURATIONS}/keys/example.key",
                private_key_password_file="/run/secrets/password",
                hosts=("example.com", "*.example.com"),
                alpn=("h2", "http/1.1"),
                clients=Clients(
                    ca=("cloudflare", f"{CONFIGURATIONS}/own-ca.pem"),
                    crl=(f"{CONFIGURATIONS}/own.crl", f"{CONFIGURATIONS}/cloudflare.crl"),
                    fingerprints=frozenset({"2b7e151628aed2a6abf7158809cf4f3c" * 2}),
                    names=("edge.example.com", "*.edge.example.com", "spiffe://Example/edge", "Edge Client 7"),
                ),
                upstream=(
                    Upstream("http://127.0.0.1:80", "127.0.0.1", 80),
                    Upstream("unix:/run/app.sock", path="/run/app.sock"),
                    Upstream("http://[::1]:8001", "::1", 8001, proxy_protocol="v2-tls"),
                    Upstream(
                        "https://app:8443",
                        "app",
                        8443,
                        tls=UpstreamTls(
                            ca=f"{CONFIGURATIONS}/app-ca.pem",
                            server_name="inner.example.com",
                            certificate=f"{CONFIGURATIONS}/proxy.pem",
                            private_key=f"{CONFIGURATIONS}/keys/proxy.key",
                        ),
                        transparent=True,
                    ),
                ),
                dial=Dial.EAGER,
            ),
            Site(
                certificate=f"{CONFIGURATIONS}/other.pem",
                private_key=f"{CONFIGURATIONS}/other.pem",
                upstream=(Upstream("http://app_2:8000", "app_2", 8000),),
                mode=Mode.HTTP,
                http=Http(
                    fields=("x-client", "forwarded"),
                    host="app.internal:8080",
                    health_path="/healthz",
                    secret_header="X-Origin-Secret",
                    secret_file=f"{CONFIGURATIONS}/secret.txt",
                    buffer_requests=16 << 20,
                    response_timeout=30,
                ),
            ),
        ),
        enforcement="observe",
        refusal="alert",
        unknown_hosts="reject",
        workers=2,
        timeouts=Timeouts(handshake=5, connect=0.5, idle=300, linger=1.5, drain=3600, drain_delay=5, reload_drain=600),
        limits=Limits(1000, 200, handshakes_per_turn=8, handshakes_per_address=50, handshake_bytes=32768),
        reload=Reload(10),
        log=Log("json", "debug", 0.5),
        admin=Admin("0.0.0.0", 9180, shows=("health", "metrics")),
        user="nobody",
    )
    assert expected == load_file(str(CONFIGURATIONS / "every_key.yaml"))


def test_sample_has_every_key() -> None:
    """A key that is added is added to the sample, and so to the test above."""
    text = (CONFIGURATIONS / "every_key.yaml").read_text()
    assert not [path for path, _ in keys() if f"{path[-1]}:" not in text]


def test_relative_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Paths are absolute however the file itself is named."""
    (tmp_path / "aop.yaml").write_text("listen: ['[::]:443']\nsites: [{certificate: a.pem, upstream: 'http://a'}]")
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/a.pem" == load_file("aop.yaml").sites[0].certificate


def test_missing_file(tmp_path: Path) -> None:
    """A file that cannot be read is a problem like any other."""
    with pytest.raises(ConfigurationError) as caught:
        load_file(str(tmp_path / "aop.yaml"))
    expected = f'--config: "{tmp_path}/aop.yaml" does not exist: correct the path or put the file there'
    assert expected == str(caught.value)


NO_VALUE = "has no value: give one or leave it out"
NO_ITEM = "is an empty list: name at least one or leave it out"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("wrokers: 1", "wrokers: is not a known key: did you mean `workers`?"),
        (
            "zzz: 1",
            "zzz: is not a known key: those known here are listen, sites, enforcement, refusal, unknown_hosts, workers, timeouts, limits, reload, log, admin, user",
        ),
        (r'"wor\nkers": 1', r'"wor\nkers": is not a known key: did you mean `workers`?'),
        ("workers: [1]", "workers: must be one value, not a list: write it without brackets or keys"),
        ("workers: null", f"workers: {NO_VALUE}"),
        ("refusal: paeg", 'refusal: "paeg" is not known here: write `page` or `alert`'),
        ("refusal: {a: b}", "refusal: a mapping is not known here: write `page` or `alert`"),
        ("timeouts:", f"timeouts: {NO_VALUE}"),
        ("timeouts: 10s", 'timeouts: must be a mapping, not "10s": write keys with their values'),
        ("timeouts: {idel: 1s}", "timeouts.idel: is not a known key: did you mean `idle`?"),
        (
            "limits: {handshakes_per_address: 0}",
            'limits.handshakes_per_address: "0" is not possible: write a whole number from 1 to 1000000',
        ),
        ("limits: {handshake_bytes: 1}", 'limits.handshake_bytes: "1" is out of range: write 4096 to 262144 bytes'),
        ("log: {level: loud}", 'log.level: "loud" is not known here: write `debug`, `info`, `warning` or `error`'),
        ("log: {}\nlog: {}", "log: is given in line 3 and again in line 4: keep one"),
    ],
)
def test_mistake_at_the_top(text: str, problem: str) -> None:
    """One mistake gives one sentence, and nothing else."""
    expected = [problem]
    assert expected == problems_of_file(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "host: [a]",
            "sites[0].host: is not a known key: did you mean `hosts`?",
        ),
        ("hosts: []", f"sites[0].hosts: {NO_ITEM}"),
        ("hosts:", f"sites[0].hosts: {NO_VALUE}"),
        (
            "hosts: a.example",
            'sites[0].hosts: must be a list, not "a.example": write each item after a dash, or all in brackets',
        ),
        (
            "hosts: [a.example, A.Example.]",
            'sites[0].hosts[1]: "a.example" is listed in sites[0].hosts[0] already: keep one',
        ),
        ("hosts: [null]", f"sites[0].hosts[0]: {NO_VALUE}"),
        ("alpn: [h3]", 'sites[0].alpn[0]: "h3" is not known here: write `http/1.1` or `h2`'),
        ("clients: {ca: []}", f"sites[0].clients.ca: {NO_ITEM}"),
        ("clients: {ca: [cloudflare, '']}", 'sites[0].clients.ca[1]: "" is no path: name a file'),
        ("clients: {fingerprints:}", f"sites[0].clients.fingerprints: {NO_VALUE}"),
        ("clients: [cloudflare]", "sites[0].clients: must be a mapping, not a list: write keys with their values"),
        ("dial: [eager]", "sites[0].dial: a list is not known here: write `first_byte` or `eager`"),
    ],
)
def test_mistake_in_a_site(text: str, problem: str) -> None:
    """One mistake gives one sentence, at the path as it was written."""
    expected = [problem]
    assert expected == problems_of_site(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("upstream: []", f"sites[0].upstream: {NO_ITEM}"),
        ("upstream:", f"sites[0].upstream: {NO_VALUE}"),
        ("upstream: [x]", f'sites[0].upstream[0]: "x" has no scheme: {SCHEMES}'),
        ("upstream: {url: x}", f'sites[0].upstream.url: "x" has no scheme: {SCHEMES}'),
        (
            "upstream: [{url: [x]}]",
            "sites[0].upstream[0].url: must be one value, not a list: write it without brackets or keys",
        ),
        (
            "upstream: {}",
            "sites[0].upstream.url: is missing: give the backend's address, http[s]://HOST[:PORT] or unix:/path",
        ),
        (
            "upstream: {url: 'http://a', ca: b}",
            "sites[0].upstream: `ca` is for a backend that speaks TLS: write https://, or leave it out",
        ),
        (
            "upstream: {url: 'https://a', private_key: b}",
            "sites[0].upstream: `private_key` is given without `certificate`: name the certificate that it belongs to",
        ),
        (
            "upstream: {url: 'http://a', transparent: yes}",
            'sites[0].upstream.transparent: "yes" is no answer: write `true` or `false`',
        ),
        (
            "upstream: {url: 'unix:/a', transparent: true}",
            "sites[0].upstream: `transparent` is for a backend behind an IP address: a unix socket sees no client's",
        ),
        ("a: 1", "sites[0].upstream: is missing: give the backend, http[s]://HOST[:PORT] or unix:/path"),
    ],
)
def test_mistake_in_an_upstream(text: str, problem: str) -> None:
    """However short the form, the path is that of what was written."""
    assert problem == problems_of_sites(text)[0]


def test_same_address_twice() -> None:
    """An address stands once; port 0 is another port each time."""
    text = "{listen: ['a:0', 'a:0', '[::1]:1', '[0::1]:1'], sites: [{certificate: c, upstream: 'http://a'}]}"
    expected = ["listen[3]: is the same address as listen[2]: keep one"]
    assert expected == problems(text)


def test_same_host_in_two_sites() -> None:
    """A host belongs to one site, and one site at most is for any name."""
    expected = [
        'sites[1].hosts[1]: "a.b" is listed in sites[0].hosts[0] already: keep one',
        "sites[3].hosts: is left out, as sites[2].hosts is: only one site can be the one for any name",
    ]
    assert expected == problems_of_sites(
        "upstream: 'http://a', hosts: [A.b]",
        "upstream: 'http://a', hosts: [c.d, a.b]",
        "upstream: 'http://a'",
        "upstream: 'http://a'",
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://127.0.0.1:8000", "http://localhost:8000"),
        ("unix:/run/a", "unix:/run/a"),
        ("http://APP", "{url: 'http://app:80'}"),
        ("http://app:443", "{url: 'https://app.', ca: own, server_name: inner}"),
        ("{url: 'https://10.0.0.1', server_name: a}", "{url: 'https://10.0.0.1', server_name: b}"),
        ("http://127.0.0.1:8000", "{url: 'https://app.localhost:8000'}"),
        ("http://127.0.0.1:8000", "http://127.0.0.2:8000"),
        ("http://127.0.0.1:8000", "http://0.0.0.0:8000"),
        ("http://127.0.0.1:8000", "'http://[::ffff:127.0.0.1]:8000'"),
        ("http://10.0.0.1:8000", "'http://[::ffff:10.0.0.1]:8000'"),
        ("'http://[::1]:8000'", "http://ip6-localhost:8000"),
        ("unix:/run/a", "unix:/run/./b/../a"),
    ],
)
def test_shared_upstream(one: str, other: str) -> None:
    """Two sites with one backend accept the same clients, else a Host header would walk past the stricter."""
    found = problems_of_sites(
        f"hosts: [a], upstream: {one}", f"hosts: [b], upstream: [{other}], clients: {{ca: [cloudflare, own]}}"
    )
    expected = ["sites[1].upstream"]
    assert expected == [problem.partition(": ")[0] for problem in found]
    assert found[0].endswith(
        " is the backend of sites[0] too, which accepts other clients, so a Host header would walk past the stricter"
        " of the two: give both the same clients, or each its own backend, or both `mode: http`, which holds every"
        " request to its site"
    )


def test_a_socket_by_two_paths(tmp_path: Path) -> None:
    """A symbolic link does not make it another backend."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").symlink_to("one")
    paths = [f"upstream: 'unix:{tmp_path}/{name}/a'" for name in ("one", "other")]
    found = problems_of_sites(f"hosts: [a], {paths[0]}", f"hosts: [b], {paths[1]}, clients: {{ca: [own]}}")
    assert ["sites[1].upstream"] == [problem.partition(": ")[0] for problem in found]


@pytest.mark.parametrize("other", ["http://app:8001", "https://app2:8000", "http://10.0.0.1:8000", "unix:/run/app"])
def test_other_backends(other: str) -> None:
    """Another port, name or path is another backend, for clients of its own."""
    text = f"""
    listen: [a:1]
    sites:
      - {{hosts: [a], certificate: c, upstream: 'http://app:8000'}}
      - {{hosts: [b], certificate: c, upstream: '{other}', clients: {{ca: [own]}}}}
    """
    expected = 2
    assert expected == len(load(parse_document(text.encode())[0], "/etc").sites)


def sharing_sites(*modes: str) -> list[str]:
    """Sites with one backend, the second with other clients than those beside it."""
    return [
        f"certificate: c, hosts: [s{number}], upstream: http://a, mode: {mode}, clients: {{ca: [{ca}]}}"
        for number, (mode, ca) in enumerate(zip(modes, ("one", "two", "one"), strict=True))
    ]


def test_shared_upstream_where_requests_are_read() -> None:
    """Sites that hold every request to its own may share a backend."""
    sites = ", ".join(f"{{{site}}}" for site in sharing_sites("http", "http", "http"))
    assert len(load(parse_document(f"{{listen: ['a:1'], sites: [{sites}]}}".encode())[0], "/etc").sites) == 3


@pytest.mark.parametrize(
    ("modes", "site"), [(("http", "http", "relay"), 2), (("relay", "http", "http"), 1), (("http", "relay", "http"), 1)]
)
def test_shared_upstream_where_not_all_are_read(modes: tuple[str, str, str], site: int) -> None:
    """And with nobody else: whichever comes first, and whoever it has its clients in common with."""
    first, *_ = problems(f"{{listen: ['a:1'], sites: [{', '.join(f'{{{one}}}' for one in sharing_sites(*modes))}]}}")
    assert first.startswith(f"sites[{site}].upstream: ")


@pytest.mark.parametrize(
    ("site", "problem"),
    [
        ("http: {health_path: /h}", "http: has a meaning with `mode: http` only: write that too, or leave this out"),
        ("mode: http, http: {secret_header: X}", "http.secret_header: has no meaning without `secret_file`"),
        ("mode: http, http: {secret_file: x}", "http.secret_file: has no meaning without `secret_header`"),
        ("mode: http, alpn: [http/1.1, h2]", "alpn: holds h2, and `mode: http` speaks HTTP/1.1"),
        ("mode: http, dial: eager", "dial: is eager, and `mode: http` dials for requests"),
        ("mode: http, upstream: {url: 'http://a', proxy_protocol: v2}", "upstream: has `proxy_protocol`, which tells"),
        ("mode: http, upstream: ['http://a', {url: 'http://b', proxy_protocol: v1}]", "upstream: has `proxy_protocol`"),
        ("mode: http, upstream: {url: 'http://a', transparent: true}", "upstream: has `transparent`, which tells"),
        ("mode: http, http: {health_path: 'x'}", 'http.health_path: "x" is no path of a URL'),
        ("mode: http, http: {health_path: '/x?y'}", 'http.health_path: "/x?y" is no path of a URL'),
        ("mode: http, http: {host: 'a/b'}", "http.host: "),
        ("mode: http, http: {host: ':80'}", 'http.host: ":80" is no Host'),
        ("mode: http, http: {host: 'a:0'}", "http.host: port 0 does not exist"),
        (
            "mode: http, http: {secret_header: 'X_Y', secret_file: x}",
            'http.secret_header: "X_Y" is no name of a header',
        ),
        ("mode: http, http: {buffer_requests: 1}", "http.buffer_requests: "),
        ("mode: tcp", 'mode: "tcp" is not known here: write `relay` or `http`'),
    ],
)
def test_what_a_mode_does_not_go_with(site: str, problem: str) -> None:
    """Nothing is taken that nobody would heed."""
    (found,) = problems_of_sites(f"{'' if 'upstream' in site else 'upstream: http://a, '}{site}")
    assert found.startswith(f"sites[0].{problem}")


@pytest.mark.parametrize(("text", "host"), [("App:80", "app:80"), ("[::1]:80", "[::1]:80"), ("10.0.0.1", "10.0.0.1")])
def test_host_for_the_backend(text: str, host: str) -> None:
    """A name or an address, with a port or without."""
    written = f"{{certificate: c, upstream: 'http://a', mode: http, http: {{host: '{text}'}}}}"
    document = parse_document(f"listen: ['a:1']\nsites: [{written}]".encode())[0]
    assert load(document, "/etc").sites[0].http.host == host


def test_shared_upstream_with_equal_clients() -> None:
    """The order of a list does not make clients different."""
    text = """
    listen: [a:1]
    sites:
      - {hosts: [a], certificate: c, upstream: http://a, clients: {ca: [cloudflare, own]}}
      - {hosts: [b], certificate: c, upstream: http://a, clients: {ca: [own, cloudflare]}}
    """
    expected = 2
    assert expected == len(load(parse_document(text.encode())[0], "/etc").sites)


def test_every_problem_at_once() -> None:
    """What is wrong between keys is found beside what is wrong in them."""
    text = """
    listen: [":1"]
    sites:
      - {hosts: [a.b, "*"], upstream: http://a, clients: {names: [edge]}}
      - {hosts: [A.B], certificate: c, upstream: http://a}
    timeouts: {idle: x}
    refusal: alert
    refusal: alert
    """
    expected = [
        "listen[0]",
        "sites[0].hosts[1]",
        "sites[0].certificate",
        "timeouts.idle",
        "refusal",
        "sites[1].hosts[0]",
        "sites[1].upstream",
    ]
    assert expected == [problem.partition(": ")[0] for problem in problems(text)]


@pytest.mark.parametrize("text", ["", "# nothing", "[]", "text", "null", "{}"])
def test_no_configuration(text: str) -> None:
    """A file that says nothing is a problem, not an empty configuration."""
    assert problems(text)


NEAR_KEYS = st.sampled_from([path[-1] for path, _ in keys()])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.dates(),
    st.binary(max_size=8),
    st.sampled_from(
        ["cloudflare", "http://a", "unix:/a", "a.b", "*.a", "10s", "16KiB", "auto", "127.0.0.1:80", "[::1]:0"]
    ),
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NEAR_KEYS | SCALARS, inner, max_size=5),
    max_leaves=30,
)
SITES = st.fixed_dictionaries(
    {"certificate": st.just("a"), "upstream": st.just("http://a") | DOCUMENTS},
    optional={"hosts": st.just(["a.b"]) | DOCUMENTS, "clients": DOCUMENTS, "alpn": DOCUMENTS, "dial": DOCUMENTS},
)
NEARLY_RIGHT = st.fixed_dictionaries(
    {"listen": st.just(["a:1"]) | DOCUMENTS, "sites": st.lists(SITES, max_size=3)},
    optional={"timeouts": DOCUMENTS, "limits": DOCUMENTS, "log": DOCUMENTS, "user": DOCUMENTS, "workers": DOCUMENTS},
)


def outcome(content: bytes) -> Settings | list[str]:
    try:
        document, found = parse_document(content)
        return load(document, "/etc/aop", found)
    except ConfigurationError as error:
        return [str(problem) for problem in error.problems]


@settings(deadline=None)
@given(DOCUMENTS | NEARLY_RIGHT)
def test_any_document(document: object) -> None:
    """Whatever YAML can say gives settings, or at least one problem; never another exception."""
    result = outcome(yaml.dump(document, allow_unicode=True).encode())
    assert isinstance(result, Settings) or (result and all(map(str.isprintable, result)))


@settings(deadline=None)
@given(st.binary() | st.text("{}[]&*!|>'\"%@`#:,-? \n\tab~<=", max_size=40).map(str.encode))
def test_any_bytes(content: bytes) -> None:
    """Whatever stands in the file gives settings, or at least one problem; never another exception."""
    result = outcome(content)
    assert isinstance(result, Settings) or (result and all(map(str.isprintable, result)))
