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


# Small blocks never lie alone: what is freed between those that stay is only given back by trimming.
SMALL = """
import sys
from pathlib import Path
from whimbrel_server.memory import trim

size = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
before, blocks = size(), [bytearray(16 * 1024) for _ in range(2048)]
kept = blocks[::64]
del blocks
if sys.argv[1] == "returning":
    trim()
print(size() - before)
"""


def grown(program: str, mode: str) -> int:
    """How many MiB the process keeps after all was freed but a few small blocks."""
    done = subprocess.run([sys.executable, "-c", program, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt and malloc_trim are glibc's")
@pytest.mark.parametrize("program", [PROGRAM, SMALL], ids=["large", "small"])
def test_freed_blocks_leave_the_process(program: str) -> None:
    assert grown(program, "returning") <= 8 < grown(program, "as it is")
