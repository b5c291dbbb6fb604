"""Bearer tokens: what a device shows after its check-in, verified without a database.

A token is base64url of device16 || expires8 || HMAC-SHA256(key, "whimbrel token" || fleet16 || device16 || expires8). What
belongs here: making and checking these bytes. What does not: who gets one (the check-in), and the operator's token
(`admin_api.py`). Time is an argument.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from whimbrel_protocol.errors import Code, ProtocolError

_DEVICE, _EXPIRES, _MAC = 16, 8, 32


class Tokens:
    """Issues and checks the tokens of one fleet under one 32-byte key."""

    def __init__(self, key: bytes, fleet: bytes) -> None:
        self._key = key
        self._context = b"whimbrel token" + fleet

    def issue(self, device: bytes, expires: int) -> str:
        """Return a token of `device` (16 bytes) that holds until `expires`, Unix seconds."""
        body = device + expires.to_bytes(_EXPIRES, "little")
        return base64.urlsafe_b64encode(body + self._mac(body)).decode().rstrip("=")

    def device(self, token: str, now: int) -> bytes:
        """Return the device that `token` was issued to. Raises ProtocolError TOKEN_INVALID or TOKEN_EXPIRED."""
        raw = _decoded(token)
        body, mac = raw[: _DEVICE + _EXPIRES], raw[_DEVICE + _EXPIRES :]
        if len(raw) != _DEVICE + _EXPIRES + _MAC or not hmac.compare_digest(mac, self._mac(body)):
            raise ProtocolError(Code.TOKEN_INVALID)
        if now > int.from_bytes(body[_DEVICE:], "little"):
            raise ProtocolError(Code.TOKEN_EXPIRED)
        return body[:_DEVICE]

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, self._context + body, "sha256")


def _decoded(token: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (UnicodeEncodeError, binascii.Error):
        return b""
