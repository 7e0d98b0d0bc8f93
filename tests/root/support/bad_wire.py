"""Two network namespaces joined by a bad wire: frames are lost, delayed, reordered and repeated.

Usage: bad_wire.py PATH PATH LOSS DELAY JITTER REPEAT: the files of two namespaces; the shares in thousandths, the times in microseconds. Prints "up" when both devices, `wire` in each, are there.
"""
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 2, 0x1000
# More than that waits nowhere: what comes then is lost, as in a full queue.
MOST = 20_000


def device(path):
    """A TAP device in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path) as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", b"wire", IFF_TAP | IFF_NO_PI))
    return tap


one, other = device(sys.argv[1]), device(sys.argv[2])
loss, delay, jitter, repeat = (int(word) for word in sys.argv[3:7])
print("up", flush=True)
chance = random.Random(1)
waiting, number = [], 0
poll = select.poll()
for tap in (one, other):
    poll.register(tap, select.POLLIN)
while True:
    timeout = max(0, waiting[0][0] - time.monotonic()) * 1000 if waiting else 1000
    for tap, _ in poll.poll(timeout):
        for _ in range(64):
            try:
                frame = os.read(tap, 2048)
            except OSError:
                break
            if len(waiting) >= MOST or chance.randrange(1000) < loss:
                continue
            for _ in range(2 if chance.randrange(1000) < repeat else 1):
                at = time.monotonic() + (delay + chance.randrange(jitter + 1)) / 1e6
                number += 1
                heapq.heappush(waiting, (at, number, other if tap == one else one, frame))
    now = time.monotonic()
    while waiting and waiting[0][0] <= now:
        _, _, to, frame = heapq.heappop(waiting)
        try:
            os.write(to, frame)
        except OSError:
            pass
