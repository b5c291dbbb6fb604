"""The way in: `whimbrel-server`, `python -m whimbrel_server`, and the one-file binary.

What belongs here: saying in one line which extra is missing. What does not: commands (`cli.py`).
"""

from __future__ import annotations

import sys

MISSING = 3


def main() -> int:
    """Run the command line; 3 where the server's libraries are not installed."""
    try:
        from whimbrel_server import cli
    except ModuleNotFoundError as error:
        print(f"{error.name} is missing: pip install 'whimbrel[server]'", file=sys.stderr)
        return MISSING
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
