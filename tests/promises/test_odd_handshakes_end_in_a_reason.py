"""Whatever a client does in its handshake, its connection ends in a declared reason and costs nothing that lasts.

`AOP_FUZZ_INPUTS=1000000 python -m pytest -s` on this file is the deep run; it prints its figures as it goes.
"""

import os
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from actors import GET_AND_CLOSE, ONE_WORKER, Proxy, RecordingBackend, ask, client_context
from aop_proxy.reasons import Reason
from certificates import REFUSED, Authority, CredentialFiles, Credentials
from handshake_fuzzer import HandshakeFuzzer
from processes import open_descriptors, resident_kib

INPUTS = int(os.environ.get("AOP_FUZZ_INPUTS", "2000"))
ROUND = min(2000, INPUTS // 4)
GROWTH_KIB = 1024
"""What a worker's memory may differ by between the two halves of a run: the noise of its allocator."""


@pytest.fixture
def shown(authority: Authority, tmp_path: Path) -> list[tuple[Credentials, CredentialFiles]]:
    """One certificate that is good, and others that are not. Who has the good one asks for nothing."""
    good = authority.issue()
    everybody = {"good": good, **{case: REFUSED[case](authority) for case in ("self_signed", "unknown_ca", "expired")}}
    return [(credentials, credentials.write(tmp_path, name)) for name, credentials in everybody.items()]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to count with")
def test_odd_handshakes(
    site: dict[str, Any],
    backend: RecordingBackend,
    shown: list[tuple[Credentials, CredentialFiles]],
    client_credentials: CredentialFiles,
) -> None:
    """Each has one record with a reason of ours; the backend sees nothing; a good client is served between them."""
    declared = {str(reason) for reason in Reason} - {Reason.INTERNAL_ERROR}
    reasons: Counter[str] = Counter()
    memory: list[int] = []
    log = {"format": "json", "level": "debug", "refusals_per_second": 999_999}
    good = client_context(client_credentials)
    with Proxy({**ONE_WORKER, "log": log, "sites": [site]}) as proxy:
        (worker,) = proxy.worker_pids
        fuzzer = HandshakeFuzzer(proxy.address, shown)
        print(f"seed {fuzzer.seed}")
        fuzzer.attempt(100)  # caches are filled, and buffers have grown
        proxy.wait_for("connection", count=100)
        descriptors, began = open_descriptors(worker), time.monotonic()
        for done in range(0, INPUTS, ROUND):
            proxy.forget()
            del proxy.log.events[:]
            proxy.forget()
            backend.forget()
            came = fuzzer.attempt(ROUND)
            assert ask(proxy.address, good).status == 200
            proxy.wait_for("connection", count=ROUND + 1)
            records = {record["client"]: record["reason"] for record in proxy.connection_records()}
            told = Counter(reason for client, reason in records.items() if client in came)
            assert sum(told.values()) == len(came)
            assert told.keys() <= declared
            assert backend.received == GET_AND_CLOSE
            reasons += told
            memory.append(resident_kib(worker))
            if done % (20 * ROUND) == 0:
                print(
                    f"{done + ROUND} in {time.monotonic() - began:.0f} s, {memory[-1]} KiB", dict(reasons), flush=True
                )
        assert descriptors == open_descriptors(worker)
    half = len(memory) // 2
    assert median(memory[half:]) - median(memory[:half]) <= GROWTH_KIB, memory
    assert {"handshake_failed", "no_certificate", "closed"} < reasons.keys()  # it reaches every part of a handshake
