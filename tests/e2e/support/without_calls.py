"""Runs a command to which the kernel refuses some system calls (EPERM), as a container may.

without_calls.py NAME[,NAME...] COMMAND [ARGUMENT...]

The name so_mark stands for setsockopt(2) of SO_MARK, which kernels before 5.17 refuse without CAP_NET_ADMIN.
"""

import ctypes
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {"seccomp": 317, "capset": 126, "setsockopt": 54},
    "aarch64": {"seccomp": 277, "capset": 91, "setsockopt": 208},
}[platform.machine()]

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, EPERM = 0x7FFF0000, 0x00050001
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
SOL_SOCKET, SO_MARK = 1, 36
# Offsets in struct seccomp_data; of an argument the lower half.
NUMBER, SECOND_ARGUMENT, THIRD_ARGUMENT = 0, 24, 32


def instruction(code, yes, no, value):
    return struct.pack("HBBI", code, yes, no, value)


names, command = sys.argv[1].split(","), sys.argv[2:]
program = b""
for name in names:
    if name == "so_mark":
        tests = [
            (NUMBER, NUMBERS["setsockopt"]),
            (SECOND_ARGUMENT, SOL_SOCKET),
            (THIRD_ARGUMENT, SO_MARK),
        ]
    else:
        tests = [(NUMBER, NUMBERS[name])]
    for left, (offset, value) in reversed(list(enumerate(reversed(tests)))):
        # What does not fit skips the other tests and the refusal.
        program += instruction(LOAD, 0, 0, offset) + instruction(JUMP_EQUAL, 0, 2 * left + 1, value)
    program += instruction(RETURN, 0, 0, EPERM)
program += instruction(RETURN, 0, 0, ALLOW)


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


libc = ctypes.CDLL(None, use_errno=True)
for arguments in (
    (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
    (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(program) // 8, program)), 0, 0),
):
    if libc.prctl(*arguments) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execvp(command[0], command)
