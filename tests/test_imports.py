"""The house's arrows: who may import whom, and through which file each library enters. Read with docs/adr and CONTRIBUTING."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOTS = ("cext", "schemas", "edge_client", "server")

OURS = {
    "whimbrel_kernels": set(),
    "whimbrel_protocol": {"whimbrel_kernels"},
    "whimbrel": {"whimbrel_protocol"},
    "whimbrel_server": {"whimbrel_protocol", "whimbrel_kernels"},
    "whimbrel_authority": {"whimbrel_protocol"},
    "whimbrel_lab": {"whimbrel_kernels", "whimbrel_protocol", "whimbrel", "whimbrel_server", "whimbrel_authority"},
}

# Each third-party library, and the files (or packages, with a slash at the end) through which it enters.
DOORS = {
    "numpy": ("whimbrel_kernels/", "whimbrel_protocol/", "whimbrel/", "whimbrel_server/", "whimbrel_lab/"),
    "nacl": ("whimbrel_kernels/_numpy.py", "whimbrel_protocol/primitives.py"),
    "flatbuffers": ("whimbrel_protocol/wire.py", "whimbrel_protocol/_fb/"),
    "zstandard": ("whimbrel_protocol/delta.py",),
    "aiohttp": ("whimbrel/transport.py", "whimbrel_authority/service.py", "whimbrel_server/", "whimbrel_lab/"),
    "onnxruntime": ("whimbrel/trainer.py", "whimbrel_lab/"),
    "onnx": ("whimbrel_server/compiler/", "whimbrel_server/plans.py", "whimbrel_lab/"),
    "msgspec": ("whimbrel_server/", "whimbrel_lab/"),
    "sqlite_utils": ("whimbrel_server/storage/",),
    "sklearn": ("whimbrel_lab/",),
    "matplotlib": ("whimbrel_lab/",),
    "torch": ("whimbrel_lab/bench/eager.py",),  # run by an interpreter of its own, and imported by nobody
}
# Parts of the server that stay pure: no library but these.
PURE = {
    "whimbrel_server/rounds/engine.py": set(),
    "whimbrel_server/rounds/task_run.py": set(),
    "whimbrel_server/rounds/events.py": set(),
    "whimbrel_server/rounds/pace.py": set(),
    "whimbrel_server/rounds/timers.py": set(),
    "whimbrel_server/windows/window_run.py": {"numpy"},
    "whimbrel_server/windows/window_effects.py": set(),
    "whimbrel_server/windows/window_restore.py": set(),
    "whimbrel_server/rounds/aggregate.py": {"numpy"},
    "whimbrel_server/compiler/": {"numpy", "onnx"},
    "whimbrel/lifecycle.py": {"numpy"},
    "whimbrel_protocol/member.py": {"numpy"},
    "whimbrel_protocol/collector.py": {"numpy"},
}
IMPURE_STANDARD = {"asyncio", "time", "os", "socket", "sqlite3", "threading", "random", "secrets", "datetime"}


def modules() -> Iterator[tuple[str, Path]]:
    for root in ROOTS:
        for path in sorted((ROOT / root).rglob("*.py")):
            name = path.relative_to(ROOT / root).as_posix()
            if name.split("/")[0] in OURS:
                yield name, path


def imported(path: Path, name: str) -> set[str]:
    """Return the dotted names that a module imports, wherever in the module, with relative imports made absolute."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(name.split("/")[: -node.level]) + "." if node.level else ""
            found.add(base + (node.module or ""))
    return found


def through(name: str, doors: tuple[str, ...]) -> bool:
    return any(name == door or (door.endswith("/") and name.startswith(door)) for door in doors)


MODULES = list(modules())


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_no_arrow_that_the_house_does_not_allow(name: str, path: Path) -> None:
    package = name.split("/")[0]
    for target in imported(path, name):
        top = target.split(".")[0]
        if top in OURS:
            assert top == package or top in OURS[package], f"{name} imports {target}"
        elif top in DOORS:
            assert through(name, DOORS[top]), f"{top} does not enter through {name}"
        else:
            known = sys.stdlib_module_names | {"_typeshed"}  # _typeshed: the type checker's own, never there at run time
            assert top in known, f"{name} imports {target}, which has no door"


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_the_pure_core_knows_no_clock_no_socket_no_database(name: str, path: Path) -> None:
    libraries = next((libs for place, libs in PURE.items() if through(name, (place,))), None)
    pure_package = name.startswith("whimbrel_protocol/") and name != "whimbrel_protocol/replay.py"
    if libraries is None and not pure_package:
        return
    tops = {target.split(".")[0] for target in imported(path, name)}
    assert not tops & IMPURE_STANDARD, f"{name} imports {sorted(tops & IMPURE_STANDARD)}"
    if libraries is not None:
        assert (tops & DOORS.keys()) <= libraries, f"{name} imports {sorted((tops & DOORS.keys()) - libraries)}"


def test_nothing_imports_the_servers_app_module() -> None:
    allowed = {"whimbrel_server/cli.py"}
    users = {name for name, path in MODULES if "whimbrel_server.app" in imported(path, name)}
    assert users <= allowed


def test_no_drawers() -> None:
    empty = ("util", "common", "helper", "misc", "manager", "base", "stuff")
    assert not [name for name, path in MODULES if any(word in path.stem.lower() for word in empty)]


def test_importing_the_client_pulls_in_no_server_dependency_and_no_runtime() -> None:
    heavy = ["aiohttp", "onnxruntime", "onnx", "msgspec", "sqlite_utils", "whimbrel_server", "sklearn", "matplotlib"]
    code = f"import sys, whimbrel; print([m for m in {heavy!r} if m in sys.modules])"
    path = ":".join(str(ROOT / root) for root in ROOTS)
    out = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
