"""Runs a command in a terminal of its own: `terminal.py COLUMNS ROWS KEYS SECONDS TEXT COMMAND…`.

Types KEYS after SECONDS and once the command has written TEXT (nothing where there are no keys), and prints one JSON document: what the
command wrote, its exit code, and whether the terminal's modes are afterwards as they were before.
"""

import fcntl
import json
import os
import pty
import select
import struct
import sys
import termios
import time

columns, rows, keys, seconds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
awaited = sys.argv[5].encode()
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
before = termios.tcgetattr(slave)
child = os.fork()
if child == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    os.close(master)
    os.execvp(sys.argv[6], sys.argv[6:])

written = b""
type_at = time.monotonic() + seconds
give_up_at = type_at + 20
raw = False
code = None
while True:
    if select.select([master], [], [], 0.05)[0]:
        written += os.read(master, 65536)
        continue
    # ICANON is off while it reads key by key.
    raw = raw or not termios.tcgetattr(slave)[3] & termios.ICANON
    if code is not None:
        break
    if keys and time.monotonic() > type_at and awaited in written:
        os.write(master, keys.encode().decode("unicode_escape").encode())
        keys = ""
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        code = os.waitstatus_to_exitcode(status)
    elif time.monotonic() > give_up_at:
        os.kill(child, 9)
        os.waitpid(child, 0)
        code = "did not end"

print(json.dumps({
    "written": written.decode(errors="replace"),
    "code": code,
    "raw": raw,
    "restored": termios.tcgetattr(slave) == before,
}))
