"""What a hostile server can make out of honest messages, and signatures that only lenient libraries take.

Here belong the tools of the attacks: rosters, entries, certificates and votes with one thing changed, signed again where the
server has bought the key. Which rule each one breaks belongs in the tables of attacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from nacl import bindings

from tests.hostile.attack import Reply
from tests.hostile.cohort import secret
from tests.hostile.world import HostileServer
from whimbrel_protocol import messages as m
from whimbrel_protocol.layout import Signed
from whimbrel_protocol.objects import JoinEntry, Params
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.rules import bitmap
from whimbrel_protocol.transcript import vote_body

STRANGER = SigningKey(secret("stranger"))
ORDER = 2**252 + 27742317777372353535851937790883648493
TORSION = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")  # a point of order 8


# --- signatures -----------------------------------------------------------------------------------------------------


def malleated(signature: bytes) -> bytes:
    """The same signature with S + L for S: a lenient library takes it, and it is another byte string."""
    s = int.from_bytes(signature[32:], "little") + ORDER
    return signature[:32] + s.to_bytes(32, "little")


class MixedOrderKey:
    """An Ed25519 key outside the prime-order subgroup: only libraries that multiply by the cofactor take its signatures."""

    def __init__(self, seed: bytes) -> None:
        self._secret = bindings.crypto_core_ed25519_scalar_reduce(hashlib.sha512(seed).digest())
        self.public = bindings.crypto_core_ed25519_add(bindings.crypto_scalarmult_ed25519_base_noclamp(self._secret), TORSION)

    def fits(self, h: bytes) -> bool:
        """Whether the challenge leaves the point of small order in the equation."""
        return h[0] % 8 != 0

    def sign(self, kind: str, body: bytes) -> bytes:
        """A signature that holds up to a point of small order, and not without."""
        message = b"mw1/" + kind.encode() + b"\0" + body
        for attempt in range(256):
            r = bindings.crypto_core_ed25519_scalar_reduce(hashlib.sha512(bytes([attempt]) + message).digest())
            big_r = bindings.crypto_scalarmult_ed25519_base_noclamp(r)
            h = bindings.crypto_core_ed25519_scalar_reduce(hashlib.sha512(big_r + self.public + message).digest())
            if self.fits(h):
                break
        s = bindings.crypto_core_ed25519_scalar_add(r, bindings.crypto_core_ed25519_scalar_mul(h, self._secret))
        return big_r + s


def resigned(blob: Any, key: Any, **changes: Any) -> Any:
    """A signed blob with other fields, under a signature that is right for them."""
    changed: Signed = replace(blob, **changes)
    return replace(changed, signature=key.sign(changed.KIND, changed.signature_input()))


# --- OPEN -----------------------------------------------------------------------------------------------------------


def params(**changes: Any) -> Reply:
    """OPEN with other parameters."""

    def reply(server: HostileServer, honest: m.Open) -> m.Open:
        return replace(honest, params=replace(Params.decode(honest.params), **changes).encode())

    return reply


def roster(change: Callable[[HostileServer, list[bytes]], Iterable[bytes]]) -> Reply:
    """OPEN with another roster, and n to match."""

    def reply(server: HostileServer, honest: m.Open) -> m.Open:
        changed = tuple(change(server, list(honest.roster)))
        return m.Open(replace(Params.decode(honest.params), n=len(changed)).encode(), changed)

    return reply


def somebody(server: HostileServer) -> int:
    """The index of a member that is not the client."""
    return server.others[3]


def entry(at: Callable[[HostileServer], int] = somebody, signer: Any = None, **changes: Any) -> Reply:
    """OPEN with one entry changed, signed by its device or by `signer`; a change may be a function of server and entry."""

    def change(server: HostileServer, data: list[bytes]) -> list[bytes]:
        i = at(server)
        honest = JoinEntry.decode(data[i])
        made = {name: value(server, honest) if callable(value) else value for name, value in changes.items()}
        data[i] = resigned(honest, signer or server.companion_at(i).key, **made).encode()
        return data

    return roster(change)


def certified(signer: SigningKey | None = None, **changes: Any) -> Reply:
    """OPEN with the certificate of one entry changed, signed by the issuer or by `signer`."""

    def certificate(server: HostileServer, honest: JoinEntry) -> Any:
        made = {name: value(server) if callable(value) else value for name, value in changes.items()}
        return resigned(honest.certificate, signer or server.issuer, **made)

    return entry(certificate=certificate)


def with_key(make: Callable[[], Any]) -> Reply:
    """OPEN with a member whose certified identity key is an odd one."""

    def change(server: HostileServer, data: list[bytes]) -> list[bytes]:
        i, key = somebody(server), make()
        honest = JoinEntry.decode(data[i])
        certificate = resigned(honest.certificate, server.issuer, public_key=key.public)
        data[i] = resigned(honest, key, certificate=certificate).encode()
        return data

    return roster(change)


# --- U2, SURVIVORS, QUORUM ------------------------------------------------------------------------------------------


def u2_of(server: HostileServer, members: Iterable[int]) -> m.U2:
    """U2 as the client would be told it if only these had dealt."""
    collector, i, chosen = server.window.collector, server.i, sorted(members)
    honest = collector.u2_for(i)
    places = [j for j in collector.u2 if j != i]
    cts = b"".join(honest.cts[80 * at : 80 * at + 80] for at, j in enumerate(places) if j in chosen)
    return m.U2(bitmap(chosen, collector.n), cts)


def survivors_of(server: HostileServer, members: Iterable[int]) -> m.Survivors:
    """The survivors with the members' true signatures."""
    collector, chosen = server.window.collector, sorted(members)
    return m.Survivors(bitmap(chosen, collector.n), b"".join(collector._heads[i].msig for i in chosen))


def with_msig(server: HostileServer, honest: m.Survivors, at: int, msig: bytes) -> m.Survivors:
    """The survivors, with the signature of member `at` replaced."""
    place = 64 * sorted(server.window.collector.u3).index(at)
    return replace(honest, msigs=honest.msigs[:place] + msig + honest.msigs[place + 64 :])


def votes(server: HostileServer, kind: m.VoteKind, voters: Sequence[int], tau1: bytes = bytes(32), u3: bytes = b"") -> m.Quorum:
    """A certificate of these companions' votes, as if the server had bought every one of them."""
    body = vote_body(server.window.collector.tau0, kind, tau1, u3)
    signatures = [server.companion_at(i).key.sign("vote", body) for i in voters]
    return m.Quorum(kind, tau1, u3, tuple(voters), b"".join(signatures))


def commit_to(server: HostileServer, members: Iterable[int], voters: Sequence[int] | None = None) -> m.Quorum:
    """A commit certificate for these survivors, by all companions."""
    collector = server.window.collector
    who = server.others if voters is None else voters
    return votes(server, m.VoteKind.COMMIT, who, collector.tau1, bitmap(members, collector.n))
