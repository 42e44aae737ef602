"""Memory that is kept for the next batch."""

import ctypes
import subprocess
import sys

import pytest

from transforms.runtime import allocation

# Takes and frees twenty megabytes time and again; prints how many page faults the last time took.
FAULTS = """
import ctypes, resource
from transforms.runtime.allocation import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
{call}
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [libc.malloc(1 << 20) for _ in range(20)]
    for piece in pieces:
        ctypes.memset(piece, 1, 1 << 20)
    for piece in reversed(pieces):
        libc.free(ctypes.c_void_p(piece))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_not_asked_of_the_system_again():
    def faults(call: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", FAULTS.format(call=call)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )

    assert faults("") > 1000
    assert faults("keep_freed_memory()") < 100


def test_another_c_library_is_left_alone(monkeypatch):
    """Protects from an exception where the C library has no `mallopt`."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    allocation.keep_freed_memory()
