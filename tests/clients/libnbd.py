"""Exercises one export through libnbd: `libnbd.py URI`. Any failed assertion is a failed test.

Covers what the command line tools do not: many requests in flight that are answered out of order,
structured replies cut in pieces, odd 512-byte offsets, 32 MiB requests, FUA, write-zeroes with its
flags, trim, block status, several connections, and errors that must not end the connection.
"""

import errno
import random
import sys

import nbd

URI = sys.argv[1]
MIB = 1 << 20
REQUEST_MAX = 32 * MIB


def connect():
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    handle.connect_uri(URI)
    return handle


def wait_for(handle, cookies):
    """Retires requests in whatever order they finish."""
    left = set(cookies)
    while left:
        done = [cookie for cookie in left if handle.aio_command_completed(cookie)]
        left.difference_update(done)
        if left and not done:
            handle.poll(-1)


def check_announcements(handle):
    assert handle.get_size() >= 256 * MIB
    assert not handle.is_read_only()
    for can in ("flush", "fua", "trim", "zero", "multi_conn", "fast_zero", "cache", "df"):
        assert getattr(handle, "can_" + can)(), can
    assert handle.can_meta_context("base:allocation")
    assert handle.get_structured_replies_negotiated()
    assert handle.get_block_size(nbd.SIZE_MINIMUM) in (1, 512)


def check_pipelining(handle):
    """256 writes in flight at odd sectors, then as many reads."""
    chance = random.Random(1)
    sectors = chance.sample(range(0, 16 * MIB // 512, 3), 256)
    bodies = [chance.randbytes(1024) for _ in sectors]
    wait_for(handle, [handle.aio_pwrite(body, at * 512) for at, body in zip(sectors, bodies)])
    buffers = [nbd.Buffer(1024) for _ in sectors]
    wait_for(handle, [handle.aio_pread(buffer, at * 512) for at, buffer in zip(sectors, buffers)])
    for body, buffer in zip(bodies, buffers):
        assert bytes(buffer.to_bytearray()) == body


def check_large(handle):
    body = random.Random(2).randbytes(MIB) * 32
    handle.pwrite(body, 64 * MIB + 512)
    handle.flush()
    assert handle.pread(REQUEST_MAX, 64 * MIB + 512) == body
    chunks = []
    handle.pread_structured(
        8 * MIB,
        64 * MIB + 512,
        lambda data, offset, status, error: chunks.append(bytes(data)),
        nbd.CMD_FLAG_DF,
    )
    assert chunks == [body[: 8 * MIB]], "don't-fragment came in %d pieces" % len(chunks)


def check_partial_pages(handle):
    """Parts of a page written one by one end up in one page."""
    at = 20 * MIB
    for sector in range(0, 8, 2):
        handle.pwrite(bytes([sector + 1]) * 512, at + sector * 512, nbd.CMD_FLAG_FUA)
    page = handle.pread(4096, at)
    for sector in range(8):
        expected = bytes([sector + 1 if sector % 2 == 0 else 0]) * 512
        assert page[sector * 512:(sector + 1) * 512] == expected, sector


def check_zeroes(handle):
    at = 128 * MIB
    handle.pwrite(b"x" * MIB, at)
    handle.zero(256 * 1024, at, nbd.CMD_FLAG_NO_HOLE)
    handle.zero(256 * 1024, at + 256 * 1024, nbd.CMD_FLAG_FAST_ZERO)
    handle.trim(256 * 1024, at + 512 * 1024, nbd.CMD_FLAG_FUA)
    content = handle.pread(MIB, at)
    assert content == bytes(768 * 1024) + b"x" * (256 * 1024)
    # All of it, in no time: the cost of a trim does not depend on its length.
    handle.trim(handle.get_size() - 192 * MIB, 192 * MIB)


def check_status(handle):
    at = 160 * MIB
    handle.trim(MIB, at)
    handle.pwrite(b"y" * 4096, at + 4096)
    extents = []

    def note(context, offset, entries, error):
        extents.extend(zip(entries[0::2], entries[1::2]))

    handle.block_status(64 * 1024, at, note)
    flags_at = {}
    position = at
    for length, flags in extents:
        for page in range(position, min(position + length, at + 64 * 1024), 4096):
            flags_at[page - at] = flags
        position += length
    assert flags_at[0] & nbd.STATE_ZERO, flags_at
    assert not flags_at[4096] & nbd.STATE_ZERO, flags_at


def check_connections(first):
    """What one connection was told is written, another reads; a flush on one covers the other."""
    second = connect()
    first.pwrite(b"first" + bytes(507), 0)
    assert second.pread(512, 0)[:5] == b"first"
    second.flush()
    second.pwrite(b"second" + bytes(506), 0, nbd.CMD_FLAG_FUA)
    assert first.pread(512, 0)[:6] == b"second"
    second.shutdown()


def check_errors(handle):
    """A request that cannot be served is answered, and the next one is served."""
    handle.set_strict_mode(0)
    size = handle.get_size()
    for wrong in (
        lambda: handle.pread(4096, size),
        lambda: handle.pwrite(bytes(4096), size - 512),
        lambda: handle.trim(4096, size),
    ):
        try:
            wrong()
        except nbd.Error as error:
            assert error.errnum in (errno.EINVAL, errno.ENOSPC), error
        else:
            raise AssertionError("a request beyond the end was served")
    assert len(handle.pread(512, size - 512)) == 512


def main():
    handle = connect()
    check_announcements(handle)
    check_pipelining(handle)
    check_large(handle)
    check_partial_pages(handle)
    check_zeroes(handle)
    check_status(handle)
    check_connections(handle)
    check_errors(handle)
    handle.flush()
    handle.shutdown()
    # Still there for the next one.
    again = connect()
    assert again.pread(512, 0)[:6] == b"second"
    again.shutdown()


main()
