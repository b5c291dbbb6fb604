"""What large blocks cost the server's process once they are freed: nothing."""

import subprocess
import sys

import pytest

# Frees blocks in a growing order, which makes glibc raise its own threshold, below one that stays.
PROGRAM = """
import sys
from pathlib import Path
from whimbrel_server.memory import return_what_is_freed

if sys.argv[1] == "returning" and not return_what_is_freed():
    sys.exit("no mallopt")
size = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
before, kept = size(), []
for megabytes in range(1, 13):
    block = bytearray(megabytes * 2**20)
    kept.append(bytearray(2**18 - 1024))
    del block
blocks = [bytearray(2**20) for _ in range(32)]
kept.append(bytearray(2**18 - 1024))
del blocks
print(size() - before)
"""


def grown(mode: str) -> int:
    """How many MiB the process keeps after all was freed but a few small blocks."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_blocks_leave_the_process() -> None:
    assert grown("returning") <= 8 < grown("as it is")
