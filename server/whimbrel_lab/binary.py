"""Build the server as one file with PyInstaller, start the result, and ask it for its health.

Both known defects of such a build (a hidden import that PyNaCl needs, and stripping that breaks numpy's libraries) show only at
run time, so a binary that was not started was not built. Run: `python -m whimbrel_lab.binary`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.request
from importlib import import_module
from pathlib import Path

from whimbrel_lab.fleet.world import READY_S, Service, World, WorldError, free_port

OUT = Path("dist")
NAME = "whimbrel-server"
HIDDEN = ("_cffi_backend",)  # PyNaCl loads it by name, where PyInstaller cannot see it
PACKAGES = ("whimbrel_server", "whimbrel_protocol", "whimbrel_kernels")
EXCLUDED = ("whimbrel_lab", "onnxruntime", "sklearn", "scipy", "matplotlib", "pytest", "hypothesis", "mypy", "PIL")


def build() -> Path:
    """Return the path of the built binary. Raises CalledProcessError with PyInstaller's output on the terminal."""
    words = [sys.executable, "-m", "PyInstaller", "--onefile", "--noconfirm", "--log-level", "WARN", "--name", NAME]
    words += ["--distpath", str(OUT), "--workpath", "build/pyinstaller", "--specpath", "build"]
    words += [option for name in HIDDEN for option in ("--hidden-import", name)]
    words += [option for name in EXCLUDED for option in ("--exclude-module", name)]
    packages = [import_module(name) for name in PACKAGES]
    words += [option for package in packages for option in ("--paths", str(Path(str(package.__file__)).parents[1]))]
    words += [option for name in PACKAGES for option in ("--collect-submodules", name, "--collect-binaries", name)]
    words += ["--copy-metadata", "whimbrel"]
    subprocess.run([*words, str(Path(str(packages[0].__file__)).with_name("__main__.py"))], check=True)
    return OUT / NAME


def probe(binary: Path) -> str:
    """Start `binary` on a fresh directory and return what it says of its health. Raises WorldError where it does not answer."""
    with tempfile.TemporaryDirectory() as scratch:
        world = World(Path(scratch))
        world.found(n_min=8)
        port = free_port()
        words = ("serve", str(world.server_dir), "--device-port", str(port), "--admin-port", str(free_port()))
        server = Service(Path(scratch) / "binary.log", [str(binary.resolve()), *words])
        server.start()
        try:
            server.await_health(f"http://127.0.0.1:{port}/health")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=READY_S) as answer:
                text: str = answer.read().decode().strip()
                return text
        finally:
            server.stop()


def main() -> int:
    """Build, probe, and print one line."""
    binary = build()
    try:
        health = probe(binary)
    except WorldError as error:
        print(f"build-binary: {binary} was built but does not run: {error}")
        return 1
    print(f"build-binary: {binary}, {binary.stat().st_size / 2**20:.0f} MB, started and healthy ({health})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
