"""`python -m tests.model`: search windows and tell what was gone through; with a mutant's name, how the adversary wins.

python -m tests.model                          the product, 4 and 5 members
python -m tests.model --members 6 --corrupt 2
python -m tests.model --list
python -m tests.model --mutant "no msig check"
python -m tests.model --mutant all
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("cext", "schemas", "edge_client", "server")]

from tests.model.mutants import FURTHER, NAMED, PRODUCT, Mutant  # noqa: E402
from tests.model.search import explore  # noqa: E402
from tests.model.story import tell  # noqa: E402

MUTANTS = {**NAMED, **FURTHER}


def main() -> int:
    """How many windows are not safe, or how many of the mutants that were asked for are not caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Search all runs of small masking windows.")
    parser.add_argument("--members", type=int, nargs="*", default=[4, 5], help="how many members (default: 4 and 5)")
    parser.add_argument("--corrupt", type=int, nargs="*", default=[0, 1], help="how many of them corrupt (default: 0 and 1)")
    parser.add_argument("--mutant", help="print how the adversary wins against this mutant, or against `all`")
    parser.add_argument("--list", action="store_true", help="list the mutants")
    options = parser.parse_args()
    if options.list:
        print(*MUTANTS, sep="\n")
        return 0
    if options.mutant is not None:
        names = list(MUTANTS) if options.mutant == "all" else [options.mutant]
        return sum(not _catch(name, MUTANTS[name]) for name in names)
    return sum(not _search(n, c) for n in options.members for c in options.corrupt)


def _search(n: int, corrupt: int) -> bool:
    begin = time.monotonic()
    report = explore(n, corrupt, PRODUCT)
    what = f"{n} members, {corrupt} corrupt: {report.settings} choices of (t, s_min), {report.worlds} worlds"
    print(
        f"{what}, {time.monotonic() - begin:.1f} s, {'violated: ' + ', '.join(report.found) if report.found else 'I1-I6 hold'}"
    )
    return not report.found


def _catch(name: str, mutant: Mutant) -> bool:
    found = mutant.caught()
    told = found.get(mutant.breaks[-1])
    print(f"=== {name} ===", tell(told, mutant.rules) if told else "not caught", "", sep="\n")
    return told is not None


if __name__ == "__main__":
    sys.exit(main())
