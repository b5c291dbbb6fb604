"""`whimbrel-authority`: the operator's command over one authority directory.

What belongs here: arguments, files, what is printed. Rules are in `signing.py`, `issuing.py` and `enrolment.py`. Every error
goes to standard error with its number, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from whimbrel_authority import enrolment
from whimbrel_authority.issuing import DAY_S, Issuer
from whimbrel_authority.keys import Directory
from whimbrel_authority.ledger import Ledger
from whimbrel_authority.service import serve
from whimbrel_authority.signing import Terms, first_policy, next_policy, sign_plan, terms_of
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.primitives import KEY_BYTES
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.trust import fleet_of

DEVICE_BYTES = 16
TOKEN_BYTES = 24


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except ProtocolError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or args.command}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="whimbrel-authority", description="Keys, certificates, policy and plans of one fleet."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("dir", type=Path, metavar="DIR", help="the authority's directory")
        sub.set_defaults(run=run)
        return sub

    _add_terms(command("init", _init, "make a new fleet: keys, ledger and policy 1"))
    _add_issue(command("issue", _issue, "print enrolment tokens, or certify one request from a file"))
    sub = command("revoke", _revoke, "revoke a device: raises the epoch and signs a new policy, all others renew")
    sub.add_argument("--device", required=True, metavar="HEX", help="the device's id, 32 hexadecimal digits")
    sub = command("sign-policy", _sign_policy, "sign the next policy; what is not given stays as it is")
    _add_terms(sub)
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the signed policy here too")
    sub = command("sign-plan", _sign_plan, "check a task's plan and sign it")
    sub.add_argument("plan", type=Path, metavar="PLAN", help="the plan as the server exports it")
    sub.add_argument("--out", type=Path, required=True, metavar="SIGNED", help="where the signed plan goes")
    sub = command("serve", _serve, "run the enrolment service; needs issuer.key, policy.bin and the ledger only")
    sub.add_argument("--host", default="127.0.0.1")
    sub.add_argument("--port", type=int, default=7443, help="0 takes a free port")
    return parser


def _add_terms(sub: argparse.ArgumentParser) -> None:
    defaults = Terms()
    sub.add_argument("--n-min", type=int, metavar="N", help=f"least members of a window ({defaults.n_min})")
    sub.add_argument("--n-max", type=int, metavar="N", help=f"most members of a window ({defaults.n_max})")
    sub.add_argument(
        "--gamma", type=_milli, dest="gamma_milli", metavar="SHARE", help="tolerated share of colluding devices (0.2)"
    )
    sub.add_argument("--sigma", type=int, metavar="BITS", help=f"security of the mask graph in bits ({defaults.sigma})")
    sub.add_argument(
        "--policy-days", type=int, dest="days", metavar="DAYS", help=f"days that the policy holds ({defaults.days})"
    )
    sub.add_argument(
        "--allow-unmasked",
        action=argparse.BooleanOptionalAction,
        dest="unmasked",
        default=None,
        help="whether plans without masks may be signed (no)",
    )


def _milli(text: str) -> int:
    return round(float(text) * 1000)


def _add_issue(sub: argparse.ArgumentParser) -> None:
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--tokens", type=int, metavar="N", help="print N enrolment tokens, one a line")
    what.add_argument("--request", type=Path, metavar="FILE", help="certify the request in this file")
    sub.add_argument("--uses", type=int, default=1, metavar="N", help="devices that one token admits (1)")
    sub.add_argument("--days", type=int, default=7, metavar="N", help="days that a token holds (7)")
    sub.add_argument("--out", type=Path, metavar="FILE", help="where the certificate goes")


def _terms(args: argparse.Namespace, given: Terms) -> Terms:
    values = {f.name: getattr(args, f.name) for f in fields(Terms)}
    return replace(given, **{name: value for name, value in values.items() if value is not None})


def _now() -> int:
    return int(time.time())


@contextmanager
def _ledger(directory: Directory) -> Iterator[Ledger]:
    directory.policy()  # no ledger is made beside a fleet that does not exist
    ledger = Ledger(directory.ledger_path)
    try:
        yield ledger
    finally:
        ledger.close()


# --- commands -------------------------------------------------------------------------------------------------------


def _init(args: argparse.Namespace) -> None:
    terms = _terms(args, Terms())
    terms.check()
    root, issuer, plan = (secrets.token_bytes(KEY_BYTES) for _ in range(3))
    directory = Directory.create(args.dir, (root, issuer, plan))
    fleet = fleet_of(directory.root.public)
    keys = (directory.issuer.public, directory.plan_signer.public)
    directory.replace_policy(first_policy(directory.root, fleet, *keys, terms, _now()).encode())
    with _ledger(directory):
        pass
    print(f"fleet {fleet.hex()}")
    print(f"root {directory.root.public.hex()}")


def _issue(args: argparse.Namespace) -> None:
    directory = Directory(args.dir)
    if args.tokens is not None:
        _issue_tokens(directory, args)
    elif args.out is None:
        raise ProtocolError(Code.CONFIGURATION, "--request needs --out FILE")
    else:
        issuer = Issuer(directory.issuer, Policy.decode(directory.policy()))
        with _ledger(directory) as ledger:
            answer = enrolment.enrol_offline(ledger, issuer, args.request.read_bytes(), _now())
        args.out.write_bytes(answer.certificate)


def _issue_tokens(directory: Directory, args: argparse.Namespace) -> None:
    if min(args.tokens, args.uses, args.days) < 1:
        raise ProtocolError(Code.CONFIGURATION, "--tokens, --uses and --days are at least 1")
    tokens = [secrets.token_urlsafe(TOKEN_BYTES) for _ in range(args.tokens)]
    with _ledger(directory) as ledger:
        ledger.add_tokens(tokens, args.uses, _now() + args.days * DAY_S)
    print("\n".join(tokens))


def _revoke(args: argparse.Namespace) -> None:
    directory = Directory(args.dir)
    policy = Policy.decode(directory.policy())
    with _ledger(directory) as ledger:
        epoch = enrolment.revoke(ledger, _device(args.device), policy.min_epoch)
        if epoch > policy.min_epoch:
            policy = _replace_policy(directory, ledger, terms_of)
    print(f"device {args.device} is revoked; policy {policy.serial} asks for epoch {epoch}: install it on the server")


def _replace_policy(directory: Directory, ledger: Ledger, terms: Callable[[Policy], Terms]) -> Policy:
    """Put the next policy in force. The ledger's lock keeps two commands from signing two policies of one serial."""
    with ledger.transaction():
        present = Policy.decode(directory.policy())
        policy = next_policy(directory.root, present, terms(present), ledger.least_epoch(), _now())
        directory.replace_policy(policy.encode())
    return policy


def _device(text: str) -> bytes:
    try:
        device = bytes.fromhex(text)
    except ValueError:
        device = b""
    if len(device) != DEVICE_BYTES:
        raise ProtocolError(Code.CONFIGURATION, f"a device's id is {2 * DEVICE_BYTES} hexadecimal digits")
    return device


def _sign_policy(args: argparse.Namespace) -> None:
    directory = Directory(args.dir)
    with _ledger(directory) as ledger:
        policy = _replace_policy(directory, ledger, lambda present: _terms(args, terms_of(present)))
    if args.out is not None:
        args.out.write_bytes(policy.encode())
    print(f"policy {policy.serial} holds until {_date(policy.not_after)}: install it on the server")


def _sign_plan(args: argparse.Namespace) -> None:
    directory = Directory(args.dir)
    plan = sign_plan(directory.plan_signer, Policy.decode(directory.policy()), args.plan.read_bytes(), _now())
    args.out.write_bytes(plan.encode())
    masks = "masked" if plan.masked else "WITHOUT MASKS"
    print(f"signed: task {plan.task}, serial {plan.serial}, {plan.d} parameters, {masks}, until {_date(plan.not_after)}")


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _serve(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(Directory(args.dir), args.host, args.port, lambda url: print(f"authority on {url}", flush=True)))


if __name__ == "__main__":
    sys.exit(main())
