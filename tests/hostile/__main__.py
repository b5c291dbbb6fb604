"""`python -m tests.hostile`: the hostile server for one client of any language, and a verdict at the end.

    python -m tests.hostile --list
    python -m tests.hostile --attack u2-under-the-floor --port 8443

Here belong arguments and what is printed. The exit code is 0 if the client held, 1 if it did not, 2 if it never came so far.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence

from tests.client.fake_server import TOKEN
from tests.hostile.attack import Attack, Update
from tests.hostile.attacks import ATTACKS
from tests.hostile.listener import Listener
from tests.hostile.verdict import faults
from tests.hostile.world import HostileServer

HELD, FAILED, UNREACHED = 0, 1, 2
LOOK_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description="A hostile server for one client.")
    parser.add_argument("--list", action="store_true", help="name every attack with the rule that it breaks")
    parser.add_argument("--attack", choices=sorted(ATTACKS), metavar="NAME")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--patience", type=float, default=120.0, metavar="SECONDS", help="for the client to come so far")
    parser.add_argument("--quiet", type=float, default=10.0, metavar="SECONDS", help="how long it must then stay silent")
    arguments = parser.parse_args(argv)
    if arguments.list or arguments.attack is None:
        for attack in ATTACKS.values():
            print(f"{attack.name:42} {expected(attack):44} {attack.rule}")
        return HELD
    return asyncio.run(_serve(ATTACKS[arguments.attack], arguments.port, arguments.patience, arguments.quiet))


def expected(attack: Attack) -> str:
    """What the client has to do, in a few words."""
    number = f"error {attack.code:d} {attack.code.name}" if attack.code is not None else "no error"
    return f"{number}, update {attack.update.value}"


async def _serve(attack: Attack, port: int, patience_s: float, quiet_s: float) -> int:
    server = HostileServer(attack)
    async with Listener(server, port).serving() as listener:
        print(f"url    {listener.url}\nroot   {server.root.public.hex()}\ntoken  {TOKEN}")
        print(f"attack {attack.name}: {attack.rule}\nexpect {expected(attack)}", flush=True)
        if attack.clock_s:
            print(f"clock  the client's is to be {-attack.clock_s} s behind once it has checked in", flush=True)
        if not await _until_struck(server, patience_s):
            print("UNREACHED: the client did not come so far", flush=True)
            return UNREACHED
        await _until_quiet(server, quiet_s)
    found = faults(server)
    print("\n".join(f"FAILED: {fault}" for fault in found) or f"HELD: {expected(attack)}{_reported(server)}", flush=True)
    return FAILED if found else HELD


async def _until_struck(server: HostileServer, patience_s: float) -> bool:
    """Whether the attack was carried out; one that must not spoil the window is over when the window is."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if server.struck is not None and (server.attack.update is not Update.COUNTED or server.finished):
            return True
        await asyncio.sleep(LOOK_S)
    return False


async def _until_quiet(server: HostileServer, quiet_s: float) -> None:
    """Return when nothing but polls and check-ins came for so long."""
    seen, since = len(server.seen), time.monotonic()
    while time.monotonic() < since + quiet_s:
        await asyncio.sleep(LOOK_S)
        heard = [one for one in server.seen[seen:] if one.kind not in ("check-in", "reports", "joins", "renew")]
        if heard:
            seen, since = len(server.seen), time.monotonic()


def _reported(server: HostileServer) -> str:
    numbers = sorted({report.code for report in server.reports})
    return f" (it reported {', '.join(map(str, numbers))})" if numbers else ""


if __name__ == "__main__":
    raise SystemExit(main())
