"""`whimbrel-device`: run one device from a shell, and look at one.

What belongs here: arguments, exit codes, and what is printed. What does not: anything that an app could want too
(`participant.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from whimbrel.device_policy import DevicePolicy
from whimbrel.examples import from_npz
from whimbrel.journal import inspect
from whimbrel.lifecycle import FOR_PEOPLE
from whimbrel.participant import Participant
from whimbrel_protocol.errors import ProtocolError
from whimbrel_protocol.objects import Certificate

TOKEN_VARIABLE = "WHIMBREL_TOKEN"  # noqa: S105  # the name of a variable
AUTHORITY_VARIABLE = "WHIMBREL_AUTHORITY"
REFUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 with a numbered error on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except (ProtocolError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="whimbrel-device", description="One device of a federation.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="take part with the examples of one .npz file")
    run.set_defaults(command=_run)
    run.add_argument("url", help="the server's device listener, such as https://fleet.example")
    run.add_argument("--data", type=Path, required=True, help=".npz with arrays named like the model's inputs, and `label`")
    run.add_argument(
        "--state", type=Path, default=Path("whimbrel-state"), help="the device's own directory; keep it out of backups"
    )
    pinned = os.environ.get(AUTHORITY_VARIABLE, "")
    run.add_argument(
        "--authority",
        default=pinned,
        required=not pinned,
        metavar="ROOT_HEX",
        help=f"the fleet authority's root key; ${AUTHORITY_VARIABLE} does as well",
    )
    run.add_argument("--token", default="", help=f"enrolment token, needed once; ${TOKEN_VARIABLE} does as well")
    run.add_argument("--once", action="store_true", help="leave after one contribution")
    _add_policy(run)
    status = commands.add_parser("status", help="show what a state directory holds; safe while the device runs")
    status.set_defaults(command=_status)
    status.add_argument("--state", type=Path, required=True)
    return parser


def _add_policy(run: argparse.ArgumentParser) -> None:
    default = DevicePolicy()
    run.add_argument("--n-min-floor", type=int, default=default.n_min_floor, help="least cohort that is accepted")
    run.add_argument("--history", type=int, default=default.history, help="contributed updates to keep, for debugging")
    run.add_argument("--backoff-min", type=float, default=default.backoff_min_s, metavar="SECONDS")
    run.add_argument("--backoff-max", type=float, default=default.backoff_max_s, metavar="SECONDS")
    run.add_argument("--patience", type=float, default=default.window_patience_s, metavar="SECONDS", help="inside a window")
    run.add_argument("--threads", type=int, default=default.threads)
    run.add_argument("-v", "--verbose", action="store_true", help="log every stage to stderr")


def _policy(arguments: argparse.Namespace) -> DevicePolicy:
    return DevicePolicy(
        n_min_floor=arguments.n_min_floor,
        history=arguments.history,
        backoff_min_s=arguments.backoff_min,
        backoff_max_s=arguments.backoff_max,
        window_patience_s=arguments.patience,
        threads=arguments.threads,
    )


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.data.is_file():
        raise ValueError(f"no file {arguments.data}")
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    return asyncio.run(_take_part(arguments))


async def _take_part(arguments: argparse.Namespace) -> int:
    task = asyncio.current_task()
    if os.name == "posix" and task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with Participant.open(
            arguments.url,
            state=arguments.state,
            examples=from_npz(str(arguments.data)),
            authority=arguments.authority,
            token=arguments.token or os.environ.get(TOKEN_VARIABLE, ""),
            policy=_policy(arguments),
        ) as participant:
            await (_until_contributed(participant) if arguments.once else participant.run())
    except asyncio.CancelledError:
        return 0
    return 0


async def _until_contributed(participant: Participant) -> None:
    before = _contributions(participant)
    while _contributions(participant) == before:
        delay = await participant.tick()
        trouble = participant.trouble
        if trouble is not None and trouble.code in FOR_PEOPLE:
            raise trouble
        await asyncio.sleep(delay)


def _contributions(participant: Participant) -> int:
    return sum(len(memory.contributions) for memory in participant.state.tasks.values())


def _status(arguments: argparse.Namespace) -> int:
    state = inspect(arguments.state)
    print(f"device       {state.device.hex()}")
    if state.certificate:
        certificate = Certificate.decode(state.certificate)
        print(f"fleet        {certificate.fleet.hex()}")
        print(f"certificate  serial {certificate.serial}, until {certificate.not_after} (Unix seconds)")
    print(f"policy       serial {state.policy_serial}")
    if state.assigned is not None:
        offer = state.assigned.assignment
        print(f"assignment   {offer.task} version {offer.version}, until {state.assigned.deadline:.0f}")
    for name, memory in sorted(state.tasks.items()):
        print(f"task         {name}: holds version {memory.version}, {len(memory.contributions)} contributions")
    for record in state.updates:
        print(f"update       {record.task} version {record.version}: {record.state}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
