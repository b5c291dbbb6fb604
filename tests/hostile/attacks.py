"""All attacks, by name. The rows stand in the three tables that are joined here."""

from __future__ import annotations

from tests.hostile.attack import Attack
from tests.hostile.life_attacks import LIFE_ATTACKS
from tests.hostile.member_attacks import MEMBER_ATTACKS
from tests.hostile.open_attacks import OPEN_ATTACKS
from tests.hostile.phase_attacks import PHASE_ATTACKS

ATTACKS: dict[str, Attack] = {one.name: one for one in (*LIFE_ATTACKS, *OPEN_ATTACKS, *PHASE_ATTACKS, *MEMBER_ATTACKS)}
