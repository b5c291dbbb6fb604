"""`whimbrel-server`: make a data directory, serve it, and run what is served.

What belongs here: commands, their options and what they print. What does not: what they do (`setup.py`, `app.py`, the admin
listener). Results go to standard output, errors with their number to standard error with exit status 2.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server import app, config, memory, setting_words
from whimbrel_server.admin_client import AdminClient
from whimbrel_server.datadir import DataDir
from whimbrel_server.logs import configure
from whimbrel_server.setup import initialise

Command = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except ProtocolError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    return 0


# --- what runs on the directory itself --------------------------------------------------------------------------------


def _init(arguments: argparse.Namespace) -> None:
    data = DataDir(arguments.dir)
    policy = asyncio.run(initialise(data, _root(arguments.root), _read(arguments.policy), arguments.authority))
    print(f"fleet {policy.fleet.hex()}")
    print(f"policy {policy.serial}, valid until {_date(policy.not_after)}")
    print(f"configuration {data.config}")
    print(f"operator's token {data.admin_token}")


def _root(text: str) -> bytes:
    try:
        root = bytes.fromhex(text)
    except ValueError:
        root = b""
    if len(root) != 32:
        raise ProtocolError(Code.CONFIGURATION, "--root is 64 hex digits: `whimbrel-authority init` prints it")
    return root


def _serve(arguments: argparse.Namespace) -> None:
    data = DataDir(arguments.dir)
    ports = {"WHIMBREL_LISTEN_PORT": arguments.device_port, "WHIMBREL_ADMIN_PORT": arguments.admin_port}
    given = {name: str(port) for name, port in ports.items() if port is not None}
    settings = config.load(data.config, {**os.environ, **given})
    configure(settings.log.level)
    memory.return_what_is_freed()
    asyncio.run(app.serve(data, settings))


def _check(arguments: argparse.Namespace) -> None:
    data = DataDir(arguments.dir)
    print(config.render(config.load(data.config, os.environ)), end="")


# --- what asks the running server -------------------------------------------------------------------------------------


def _task_create(arguments: argparse.Namespace) -> None:
    client = AdminClient(DataDir(arguments.dir))
    blob = client.send("POST", "/v1/blobs", _read(arguments.model))
    task = client.post("/v1/tasks", {"name": arguments.name, "model": blob["sha256"], **setting_words.given(arguments)})
    print(f"task {task['name']} is {task['state']}: let a plan signer sign its plan, then set it going:")
    print(f"  whimbrel-server task plan {task['name']} --out PLAN")
    print("  whimbrel-authority sign-plan AUTHORITY PLAN --out SIGNED")
    print(f"  whimbrel-server task sign {task['name']} SIGNED")


def _task_plan(arguments: argparse.Namespace) -> None:
    _write(arguments.out, AdminClient(DataDir(arguments.dir)).get(f"/v1/tasks/{arguments.name}/plan"))


def _task_sign(arguments: argparse.Namespace) -> None:
    task = AdminClient(DataDir(arguments.dir)).send("PUT", f"/v1/tasks/{arguments.name}/plan", _read(arguments.signed))
    print(f"task {task['name']} is {task['state']}, version {task['version']}")


def _task_show(arguments: argparse.Namespace) -> None:
    task = AdminClient(DataDir(arguments.dir)).get(f"/v1/tasks/{arguments.name}")
    settings = task.pop("settings")
    _print_pairs(task)
    print("settings")
    _print_pairs(settings, "  ")


def _task_list(arguments: argparse.Namespace) -> None:
    tasks = AdminClient(DataDir(arguments.dir)).get("/v1/tasks")
    rows = [(t["name"], t["state"], t.get("version"), t.get("contributions"), t.get("open_windows")) for t in tasks]
    _print_table(("task", "state", "version", "contributions", "open windows"), rows)


def _device_list(arguments: argparse.Namespace) -> None:
    client, after, rows = AdminClient(DataDir(arguments.dir)), "", list[tuple[object, ...]]()
    while page := client.get(f"/v1/devices?after={after}"):
        rows += [(d["device"], _date(d["last_seen"]), d["contributions"], d["app_version"], _blame(d)) for d in page]
        after = page[-1]["device"]
    _print_table(("device", "last seen", "contributions", "app", "blamed"), rows)


def _blame(device: dict[str, Any]) -> str:
    """Say what a device was last blamed for, and until when it gets no work."""
    if not device["blames"]:
        return ""
    last, until = device["blames"][-1], device["quarantined_until"]
    rest = f", no work until {_date(until)}" if until else ""
    return f"{last['kind']} ({_others(last)}) in {last['window'][:8]}{rest}"


def _others(blame: dict[str, Any]) -> str:
    return "for certain" if len(blame["suspects"]) == 1 and blame["kind"] != "silent" else f"one of {len(blame['suspects'])}"


def _window_list(arguments: argparse.Namespace) -> None:
    windows = AdminClient(DataDir(arguments.dir)).get(f"/v1/tasks/{arguments.task}/windows")
    columns = ("tau0", "version", "state", "n", "count", "applied_in")
    _print_table(("window", *columns[1:], "opened"), [[*(w[name] for name in columns), _date(w["opened_at"])] for w in windows])


def _window_show(arguments: argparse.Namespace) -> None:
    window = AdminClient(DataDir(arguments.dir)).get(f"/v1/windows/{arguments.tau0}")
    blames = window.pop("blames")
    _print_pairs(window)
    if blames:
        print("blames")
        rows = [(b["device"], b["kind"], _others(b), b["detail"], _date(b["until"]) if b["until"] else "-") for b in blames]
        _print_table(("device", "kind", "suspects", "what", "no work until"), rows)


def _model_export(arguments: argparse.Namespace) -> None:
    path = f"/v1/tasks/{arguments.task}/versions/{arguments.version}/model"
    _write(arguments.out, AdminClient(DataDir(arguments.dir)).get(path))


def _policy_install(arguments: argparse.Namespace) -> None:
    policy = AdminClient(DataDir(arguments.dir)).send("PUT", "/v1/policy", _read(arguments.file))
    print(f"policy {policy['serial']} is in force until {_date(policy['not_after'])}")


def _policy_show(arguments: argparse.Namespace) -> None:
    _print_pairs(AdminClient(DataDir(arguments.dir)).get("/v1/policy"))


# --- files and output -------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProtocolError(Code.CONFIGURATION, f"{path}: {error.strerror or error}") from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ProtocolError(Code.CONFIGURATION, f"{path}: {error.strerror or error}") from error
    print(f"{path}: {len(data)} bytes")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _print_pairs(values: dict[str, Any], indent: str = "") -> None:
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        shown = f"{len(value)}: {' '.join(value)}" if isinstance(value, list) and value and isinstance(value[0], str) else value
        print(f"{indent}{name:<{width}}  {'-' if shown in (None, []) else shown}")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[*head], *(["-" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# --- options ----------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="whimbrel-server", description="A federation server on one data directory.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_directory_commands(commands)
    _add_task_commands(_group(commands, "task", "what is trained"))
    _add(_group(commands, "device", "who takes part"), "list", _device_list, "list the devices that were seen")
    window = _group(commands, "window", "what was summed")
    _add(window, "list", _window_list, "list a task's windows").add_argument("task")
    _add(window, "show", _window_show, "show one window").add_argument("tau0", help="its name, 64 hex digits")
    export = _add(_group(commands, "model", "what was learned"), "export", _model_export, "write the model as ONNX")
    export.add_argument("task")
    export.add_argument("--version", default="latest", help="a version's number (default: latest)")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    policy = _group(commands, "policy", "the fleet's rules")
    _add(policy, "install", _policy_install, "put a newer signed policy in force").add_argument("file", type=Path)
    _add(policy, "show", _policy_show, "show the policy in force")
    return parser


def _add_directory_commands(commands: Any) -> None:
    init = _add(commands, "init", _init, "make a data directory", positional=True)
    init.add_argument("--root", required=True, metavar="HEX", help="the authority's public key")
    init.add_argument("--policy", required=True, type=Path, metavar="FILE", help="the policy that the authority signed")
    init.add_argument("--authority", default="", metavar="URL", help="where the enrolment service answers")
    serve = _add(commands, "serve", _serve, "serve a data directory", positional=True)
    serve.add_argument("--device-port", type=int, metavar="PORT", help="0: any free port")
    serve.add_argument("--admin-port", type=int, metavar="PORT", help="0: any free port")
    _add(commands, "check", _check, "print the configuration in force, secrets hidden", positional=True)


def _add_task_commands(task: Any) -> None:
    create = _add(task, "create", _task_create, "compile a model into a task that waits for its signed plan")
    create.add_argument("name")
    create.add_argument("--model", type=Path, required=True, metavar="FILE", help="an ONNX file")
    setting_words.add_options(create)
    plan = _add(task, "plan", _task_plan, "write a task's unsigned plan")
    plan.add_argument("name")
    plan.add_argument("--out", type=Path, required=True, metavar="FILE")
    sign = _add(task, "sign", _task_sign, "set a task going with its signed plan")
    sign.add_argument("name")
    sign.add_argument("signed", type=Path)
    _add(task, "show", _task_show, "show one task").add_argument("name")
    _add(task, "list", _task_list, "list all tasks")


def _group(commands: Any, name: str, help_: str) -> Any:
    return commands.add_parser(name, help=help_).add_subparsers(required=True, metavar="COMMAND")


def _add(commands: Any, name: str, run: Command, help_: str, positional: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_, description=help_)
    default = Path(os.environ.get("WHIMBREL_DIR", "."))
    where = f"the data directory (default: $WHIMBREL_DIR, now {default})"
    if positional:
        parser.add_argument("dir", type=Path, nargs="?", default=default, metavar="DIR", help=where)
    else:
        parser.add_argument("--dir", type=Path, default=default, metavar="DIR", help=where)
    parser.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
