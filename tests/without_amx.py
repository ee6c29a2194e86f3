"""A process that may not use AMX, whatever its CPU has: what a host without AMX is to a runtime.

    python without_amx.py CODE [ARGUMENT...]      runs CODE with sys.argv[1:] = the arguments

A seccomp filter answers arch_prctl(ARCH_REQ_XCOMP_PERM), by which a process asks the kernel for the
tiles, with EPERM; everything else passes. (An environment variable such as ONEDNN_MAX_CPU_ISA would
not do: some runtimes do not read it, others get slow by it.)
"""

from __future__ import annotations

import ctypes
import errno
import struct
import sys

ARCH_PRCTL = 158
ARCH_REQ_XCOMP_PERM = 0x1023
_AUDIT_ARCH_X86_64 = 0xC000003E
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # classic BPF: 32-bit words of seccomp_data
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # their places


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def deny_amx() -> None:
    """Install the filter in this process, for good; OSError where the kernel does not let it."""
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 0, 5, _AUDIT_ARCH_X86_64),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 0, 3, ARCH_PRCTL),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_IF_EQUAL, 0, 1, ARCH_REQ_XCOMP_PERM),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"prctl{arguments[:2]}")


if __name__ == "__main__":
    deny_amx()
    source = sys.argv[1]
    sys.argv = ["-c", *sys.argv[2:]]
    exec(compile(source, "<code>", "exec"), {"__name__": "__main__"})
