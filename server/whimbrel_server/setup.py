"""Making a data directory: what `whimbrel-server init` does before any server runs.

What belongs here: the first configuration and the first policy. What does not: starting (`recovery.py`).
"""

from __future__ import annotations

import time

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.trust import accept_policy
from whimbrel_server import config
from whimbrel_server.datadir import DataDir
from whimbrel_server.storage.sqlite import SqliteRounds


async def initialise(data: DataDir, root: bytes, policy: bytes, authority_url: str) -> Policy:
    """Make a data directory for the fleet under `root` (32 bytes) and return its policy.

    Raises ProtocolError CONFIGURATION where there is one already, or 2xx for a policy that devices would refuse.
    """
    if data.config.exists():
        raise ProtocolError(Code.CONFIGURATION, f"{data.config} exists already: nothing was changed")
    accepted = accept_policy(policy, root, Policy.decode(policy).fleet, int(time.time()), 0)
    data.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    data.make_secrets()
    await _keep(data, accepted.serial, policy)
    data.config.write_text(config.initial(root, authority_url), encoding="utf-8")
    return accepted


async def _keep(data: DataDir, serial: int, policy: bytes) -> None:
    rounds = SqliteRounds.open(data.database)
    try:
        await rounds.install_policy(serial, policy, time.time())
    finally:
        await rounds.close()
