"""Words and exit codes: what each command takes, prints and returns. Must not know how any of them works."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aop_proxy
from aop_proxy import companion, exposure, files, flags, notation, privileges, schema
from aop_proxy.expiry import ends_soon
from aop_proxy.listeners import BindError
from aop_proxy.log import Log, open_descriptor
from aop_proxy.model import Bundle, ConfigurationError, Problem, Settings
from aop_proxy.service_manager import ServiceManager
from aop_proxy.workers import ExitCode, Parent

if TYPE_CHECKING:
    from aop_proxy.probe import Question


INTERRUPTED = 128 + signal.SIGINT
"""As shells say it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    parser = _parser()
    own, dashes, backend = _partition(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(own)
    if dashes and parsed.command is not _exec:
        parser.error("only `exec` takes a command behind `--`")
    parsed.backend = backend
    os.environ.pop("SSLKEYLOGFILE", None)  # OpenSSL 3.5 and newer may read it by itself
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        return command(parsed)
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"aop-proxy: {_named(problem, parsed)}", file=sys.stderr)
        return ExitCode.BAD_CONFIGURATION
    except BindError as error:
        print(f"aop-proxy: {error}", file=sys.stderr)
        return ExitCode.CANNOT_BIND
    except KeyboardInterrupt:  # whoever asked for it knows why
        return INTERRUPTED


def _partition(arguments: Sequence[str]) -> tuple[Sequence[str], bool, Sequence[str]]:
    """What stands before the first `--`, whether there is one, and what stands behind it, of which nothing is ours."""
    if "--" not in arguments:
        return arguments, False, ()
    place = list(arguments).index("--")
    return arguments[:place], True, arguments[place + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aop-proxy", description=aop_proxy.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {aop_proxy.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="serve until told to stop (SIGTERM drains, SIGHUP reloads)")
    flags.add_arguments(run)
    run.set_defaults(command=_run)

    exec_ = commands.add_parser(
        "exec",
        help="run a backend as a child that can be reached through the proxy alone, and both to one end",
        usage="%(prog)s [-h] [--config FILE | flags as for `run`, but for --upstream] -- COMMAND...",
        epilog="{socket} in COMMAND becomes the path of a private unix socket, {port} a free loopback port",
    )
    flags.add_arguments(exec_, upstream=False)
    exec_.set_defaults(command=_exec)

    check = commands.add_parser("check", help="say everything that is wrong with a configuration; opens no port")
    flags.add_arguments(check)
    check.add_argument("--schema", action="store_true", help="print the JSON Schema of the configuration file instead")
    check.set_defaults(command=_check)

    probe = commands.add_parser("probe", help="ask an origin, of whatever make, as strangers would")
    probe.add_argument("origin", metavar="HOST:PORT", help="the origin itself, not Cloudflare in front of it")
    probe.add_argument("--server-name", metavar="NAME", help="the site's name; default: HOST")
    probe.add_argument("--certificate", metavar="PEM", help="of a client that should be let in")
    probe.add_argument("--private-key", metavar="PEM", help="of that certificate; default: in the same file")
    trust = probe.add_mutually_exclusive_group()
    trust.add_argument(
        "--ca", metavar="PEM", help="what the origin's certificate comes from; default: the system's CAs"
    )
    trust.add_argument("--insecure", action="store_true", help="do not verify the origin's certificate")
    probe.add_argument("--json", action="store_true", help="for machines")
    probe.set_defaults(command=_probe)

    certificates = commands.add_parser("certificates", help="a CA of your own, and a client certificate for Cloudflare")
    certificates.add_argument("--out", metavar="DIR", required=True, help="made if it is not there")
    certificates.add_argument("--name", metavar="NAME", required=True, help="a host name, or any text")
    certificates.add_argument(
        "--days", metavar="N", type=int, default=365, help="of the client certificate; default: 365"
    )
    certificates.add_argument("--renew", action="store_true", help="keep the CA, replace the client certificate")
    certificates.set_defaults(command=_certificates)

    status = commands.add_parser("status", help="what a running program's admin listener knows")
    status.add_argument("--admin", metavar="ADDRESS", default="127.0.0.1:9180", help="default: 127.0.0.1:9180")
    status.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    status.set_defaults(command=_status)

    demo = commands.add_parser("demo", help="throw-away certificates, a backend, and five kinds of visitor")
    demo.add_argument("--once", action="store_true", help="exit after the table: 0 if all five came out right")
    demo.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:0", help="default: a free port")
    demo.set_defaults(command=_demo)
    return parser


def _named(problem: Problem, arguments: argparse.Namespace) -> Problem:
    """The problem as the user wrote the thing: by key of the file, or by flag."""
    return problem if arguments.config is not None else flags.by_flag(problem)


def _run(arguments: argparse.Namespace) -> int:
    parent, _, _ = _parent(arguments)
    return asyncio.run(parent.run())


def _exec(arguments: argparse.Namespace) -> int:
    with companion.place(arguments.backend) as place:
        parent, settings, log = _parent(arguments, place.upstream)
        return asyncio.run(companion.Companion(place, settings.user, parent, log).run())


def _parent(arguments: argparse.Namespace, own_upstream: str | None = None) -> tuple[Parent, Settings, Log]:
    def load() -> Bundle:
        return files.read_bundle(flags.load_arguments(arguments, own_upstream))

    manager = ServiceManager(os.environ)
    bundle = load()
    descriptor = open_descriptor()
    log = Log(bundle.settings.log, descriptor)
    return Parent(load, bundle, log, descriptor, manager), bundle.settings, log


def _check(arguments: argparse.Namespace) -> int:
    if arguments.schema:
        print(json.dumps(schema.json_schema(), indent=2))
        return 0
    problems: list[Problem] = []
    advice: list[Problem] = []
    try:
        settings: Settings | None = flags.load_arguments(arguments)
    except ConfigurationError as error:
        problems, settings = list(error.problems), error.rest
    if settings is not None:
        found, advice = _look_into(settings)
        advice = [] if problems else [_named(one, arguments) for one in advice]
        problems += _not_told_yet([_named(problem, arguments) for problem in found], problems)
    for problem in problems:
        print(problem)
    for one in advice:
        print(f"advice: {one}")
    return ExitCode.BAD_CONFIGURATION if problems else 0


def _look_into(settings: Settings) -> tuple[list[Problem], list[Problem]]:
    """What is wrong with the files that settings name, and what is worth knowing of them."""
    from aop_proxy import snapshot, tls, transparency  # here, since the parent of `run` is to stay free of them

    bundle, problems = files.read_what_can_be_read(settings)
    problems += _user_problems(settings.user)
    problems += transparency.problems(settings)
    advice: list[Problem] = [*exposure.advise(settings), *transparency.routes(settings)]
    try:
        built = snapshot.build(bundle, 1, tls.open_key_log(settings))
    except ConfigurationError as error:
        return [*problems, *error.problems], advice
    now = datetime.now(UTC)
    advice += built.advice
    advice += (expiry.advice() for expiry in built.expiries if ends_soon(expiry.not_after, now))
    return problems, advice


def _not_told_yet(found: list[Problem], told: list[Problem]) -> list[Problem]:
    """Without those of a key, or of what is below one, that is known to be wrong: something else stands in for it."""
    known = {problem.path for problem in told}
    below = tuple(f"{path}{mark}" for path in known for mark in "[.")
    return [problem for problem in found if problem.path not in known and not problem.path.startswith(below)]


def _user_problems(user: str | None) -> tuple[Problem, ...]:
    try:
        if user is not None:
            privileges.find_user(user)
    except ConfigurationError as error:
        return error.problems
    return ()


def _probe(arguments: argparse.Namespace) -> int:
    from rich.console import Console  # here, since the parent of `run` is to stay free of what this needs

    from aop_proxy import probe, report
    from aop_proxy.visit import Unreachable

    try:
        question = _question(arguments)
        try:
            found: probe.Report | Unreachable = probe.probe(question)
        except Unreachable as reason:
            found = reason
    except ValueError as error:
        print(f"aop-proxy: {error}", file=sys.stderr)
        return ExitCode.BAD_CONFIGURATION
    if arguments.json:
        print(report.as_json(question, found))
    elif isinstance(found, Unreachable):
        print(f"aop-proxy: {arguments.origin}: {found}", file=sys.stderr)
    else:
        report.show(found, Console())
    return probe.exit_code(found)


def _question(arguments: argparse.Namespace) -> "Question":
    from aop_proxy.probe import Question
    from aop_proxy.visit import Credentials

    address = notation.origin(arguments.origin)
    try:
        name, _ = notation.origin(f"{arguments.server_name}:443") if arguments.server_name is not None else address
    except ValueError as error:
        raise ValueError(f"--server-name: {error}") from None
    if arguments.private_key is not None and arguments.certificate is None:
        raise ValueError("--private-key: is of no use without --certificate")
    credentials = None
    if arguments.certificate is not None:
        credentials = Credentials(arguments.certificate, arguments.private_key or arguments.certificate)
    return Question(address, name, credentials, arguments.ca, verify=not arguments.insecure)


def _status(arguments: argparse.Namespace) -> int:
    from aop_proxy import status  # here, as for the probe

    try:
        admin = notation.admin(arguments.admin)
    except ValueError as error:
        print(f"aop-proxy: --admin: {error}", file=sys.stderr)
        return ExitCode.BAD_CONFIGURATION
    return status.run(admin, watch=arguments.watch)


def _demo(arguments: argparse.Namespace) -> int:
    from aop_proxy import demo  # here, since the parent of `run` is to stay free of what it needs

    return demo.run(arguments.listen, once=arguments.once)


def _certificates(arguments: argparse.Namespace) -> int:
    from aop_proxy import zone_certificates  # here, as for the demonstration

    try:
        print(zone_certificates.make(arguments.out, arguments.name, arguments.days, renew=arguments.renew), end="")
    except zone_certificates.NothingMade as reason:
        print(f"aop-proxy: {reason}", file=sys.stderr)
        return ExitCode.BAD_CONFIGURATION
    return 0
