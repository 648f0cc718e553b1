"""What parent and worker say to each other: every message arrives as it was said, and an end is an end."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from actors import PATIENCE
from aop_proxy.channel import MAX_MESSAGE, Channel, Command, Commit, Drain, Prepare, Reply
from aop_proxy.model import Bundle, Listen, Settings, Site, Upstream

SITE = Site("/a.pem", "/a.key", (Upstream("http://127.0.0.1:80", "127.0.0.1", 80),))
BUNDLE = Bundle(Settings((Listen("::1", 443),), (SITE,)), {"/a.pem": b"\0\xff" * 1000, "cloudflare": b""})
REPLIES: list[Reply] = [
    {"prepared": 7, "advice": ["ä\n", "two"]},
    {"problems": [["sites[0].certificate", "a sentence"]]},
    {"drained": 0},
    {},
]


@contextlib.asynccontextmanager
async def conversation() -> AsyncIterator[tuple[Channel, Channel]]:
    """The parent's end and the worker's."""
    ours, theirs = socket.socketpair()
    parent, worker = await Channel.open(ours), await Channel.open(theirs)
    try:
        async with asyncio.timeout(PATIENCE):
            yield parent, worker
    finally:
        for end in (parent, worker):
            end.close()
            with contextlib.suppress(ConnectionError):
                await end._writer.wait_closed()


@pytest.mark.parametrize(
    "command",
    [Prepare(BUNDLE, 3), Prepare(replace(BUNDLE, files={"big": b"x" * 3_000_000}), 4), Commit(), Drain()],
    ids=["prepare", "prepare much", "commit", "drain"],
)
async def test_commands_arrive_as_they_were(command: Command) -> None:
    """The parent's values are the worker's, bytes and all, however long."""
    async with conversation() as (parent, worker):
        sending = asyncio.create_task(parent.send_command(command))
        assert await worker.receive_command() == command
        await sending


async def test_replies_arrive_in_order() -> None:
    """Several messages at once are told apart."""
    async with conversation() as (parent, worker):
        for reply in REPLIES:
            await worker.send_reply(reply)
        assert [await parent.receive_reply() for _ in REPLIES] == REPLIES


async def test_a_hang_up_is_heard_at_both_ends() -> None:
    """When one end is gone the other hears None, also when half a message is on its way."""
    async with conversation() as (parent, worker):
        parent.close()
        assert await worker.receive_command() is None
        assert await parent.receive_reply() is None
    async with conversation() as (parent, worker):
        worker._writer.write(b"\0\0\0\x10half")
        worker.close()
        assert await parent.receive_reply() is None


async def test_a_length_beyond_reason_is_an_end() -> None:
    """A worker that was taken over cannot make the parent allocate what it says."""
    async with conversation() as (parent, worker):
        worker._writer.write((MAX_MESSAGE + 1).to_bytes(4) + b"x" * 100)
        assert await parent.receive_reply() is None


async def test_a_reply_is_json_and_nothing_else() -> None:
    """What a worker says is never unpickled, and what is no mapping says nothing."""
    async with conversation() as (parent, worker):
        for message, expected in ((b"[1, 2]", {}), (b'"text"', {}), (b'{"drained": 1}', {"drained": 1})):
            await worker._send(message)
            assert await parent.receive_reply() == expected


@pytest.mark.parametrize("message", [b"", b"{", b"\xff\xfe", b"\x80\x04N."])
async def test_a_reply_that_is_no_json(message: bytes) -> None:
    """What cannot be read says nothing, or is the worker's end; it raises nothing in the parent."""
    async with conversation() as (parent, worker):
        await worker._send(message)
        assert await parent.receive_reply() in (None, {})


async def test_sending_to_who_is_gone() -> None:
    """Once the other end is known to be gone, sending says so."""
    async with conversation() as (parent, worker):
        worker.close()
        assert await parent.receive_reply() is None
        with pytest.raises(ConnectionError):
            await parent.send_command(Prepare(BUNDLE, 1))
