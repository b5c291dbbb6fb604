"""A fleet made through the real command, and devices that ask it for certificates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from whimbrel_authority.cli import main
from whimbrel_protocol.messages import Enrol, Renew
from whimbrel_protocol.objects import RENEW_KIND, CertificateRequest
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Policy


@dataclass
class Fleet:
    """An authority's directory and what `init` printed about it."""

    path: Path
    capture: pytest.CaptureFixture[str]
    fleet: bytes = b""
    root: bytes = b""

    def run(self, command: str, *arguments: object) -> str:
        """Run one command that must succeed and return what it printed."""
        status, out, err = self.attempt(command, *arguments)
        assert status == 0, err
        return out

    def attempt(self, command: str, *arguments: object) -> tuple[int, str, str]:
        """Run one command and return its status and what it printed to standard output and error."""
        self.capture.readouterr()
        status = main([command, str(self.path), *map(str, arguments)])
        out, err = self.capture.readouterr()
        return status, out, err

    def init(self, *arguments: object) -> Fleet:
        words = dict(line.split() for line in self.run("init", *arguments).splitlines())
        self.fleet, self.root = bytes.fromhex(words["fleet"]), bytes.fromhex(words["root"])
        return self

    def tokens(self, count: int = 1, *arguments: object) -> list[str]:
        return self.run("issue", "--tokens", count, *arguments).split()

    def policy(self) -> Policy:
        return Policy.decode((self.path / "policy.bin").read_bytes())


@dataclass(frozen=True)
class Device:
    """A device of a fleet, named by one number."""

    fleet: bytes
    number: int = 1

    @property
    def device(self) -> bytes:
        return bytes([self.number]) * 16

    def key(self, generation: int = 0) -> SigningKey:
        return SigningKey(bytes([self.number, generation]) * 16)

    def request(self, nonce: int = 0, generation: int = 0) -> bytes:
        key = self.key(generation)
        fields = {"fleet": self.fleet, "device": self.device, "public_key": key.public, "attest_class": 3, "flags": 5}
        return CertificateRequest.sign(key, **fields, nonce=bytes([nonce]) * 16).encode()

    def enrol(self, token: str, nonce: int = 0, generation: int = 0) -> Enrol:
        return Enrol(self.request(nonce, generation), token)

    def renew(self, certificate: bytes, nonce: int = 1, old: int = 0, new: int = 0) -> Renew:
        request = self.request(nonce, new)
        return Renew(request, certificate, self.key(old).sign(RENEW_KIND, request))
