"""whimbrel for devices: take part in training a model whose examples never leave the device.

What belongs here: the names that an app uses. Each is imported when it is first asked for, so that `import whimbrel` pulls in
neither the training runtime nor an HTTP library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whimbrel.device_policy import Cost as Cost
    from whimbrel.device_policy import DevicePolicy as DevicePolicy
    from whimbrel.examples import from_npz as from_npz
    from whimbrel.participant import Participant as Participant
    from whimbrel.trainer import Evaluator as Evaluator
    from whimbrel.trainer import Metrics as Metrics
    from whimbrel_protocol.errors import ProtocolError as ProtocolError

_HOMES = {
    "Cost": "whimbrel.device_policy",
    "DevicePolicy": "whimbrel.device_policy",
    "Evaluator": "whimbrel.trainer",
    "Metrics": "whimbrel.trainer",
    "Participant": "whimbrel.participant",
    "ProtocolError": "whimbrel_protocol.errors",
    "from_npz": "whimbrel.examples",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'whimbrel' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
