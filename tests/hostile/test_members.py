"""What bought members try on an honest server: the keys that it turns away, so that every other client is spared."""

from __future__ import annotations

import pytest

from tests.hostile.attacks import ATTACKS
from tests.hostile.cohort import Companion
from tests.hostile.forging import MixedOrderKey, resigned
from tests.hostile.world import HostileServer
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.forming import check_entry
from whimbrel_protocol.objects import JoinEntry
from whimbrel_protocol.primitives import in_prime_subgroup, verify


class LuckyMixedOrderKey(MixedOrderKey):
    """Tries nonces until the point of small order vanishes: then strict libraries take the signature, too."""

    def fits(self, h: bytes) -> bool:
        """Only challenges that are multiples of eight."""
        return h[0] % 8 == 0


@pytest.mark.rule("1.4 keys: prime-order subgroup")
def test_a_server_turns_away_a_mixed_order_key_whose_signatures_verify() -> None:
    server = HostileServer(next(iter(ATTACKS.values())))
    honest, key = JoinEntry.decode(Companion(server, 0).join()), LuckyMixedOrderKey(b"lucky")
    certificate = resigned(honest.certificate, server.issuer, public_key=key.public)
    entry = resigned(honest, key, certificate=certificate)
    assert entry.signed_by_certificate() and not in_prime_subgroup(key.public)
    with pytest.raises(ProtocolError) as refused:
        check_entry(entry.encode(), server.fleet, server.lane, server.policy, server.root.public, int(server.clock()))
    assert refused.value.code is Code.WEAK_KEY


def test_an_unlucky_mixed_order_signature_is_what_libraries_disagree_on() -> None:
    key = MixedOrderKey(b"mixed")
    assert not verify("join", key.public, b"body", key.sign("join", b"body"))
