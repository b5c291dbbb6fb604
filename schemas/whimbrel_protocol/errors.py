"""The one table of error numbers, and the exceptions that carry them.

A number is part of the contract: it is never used again for something else. Ranges: 1xx malformed bytes, 2xx signed objects and
enrolment, 3xx rules of the masking window (most are checks of the client, in the order of its phases), 4xx the server's
answers, 5xx the device's own troubles, 6xx models. The HTTP status and the page `docs/errors.md` both come from this table.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """An error number with the HTTP status that the server answers and a title for people."""

    http: int
    title: str

    def __new__(cls, number: int, http: int, title: str) -> Code:
        member = int.__new__(cls, number)
        member._value_ = number
        member.http = http
        member.title = title
        return member

    # 1xx: malformed bytes
    MALFORMED = (100, 400, "The bytes are not a message of this protocol")
    UNEXPECTED_MESSAGE = (101, 400, "A well-formed message of another kind than this call takes")
    OUT_OF_RANGE = (102, 400, "A field's length or value is outside its limits")
    BAD_DELTA = (103, 422, "A model delta or snapshot does not decode to the model that it names")
    BAD_BLOB = (104, 422, "A blob does not have the hash or the size that it was announced with")

    # 4xx: the server's answers
    NOT_FOUND = (400, 404, "There is nothing at this address")
    METHOD_NOT_ALLOWED = (401, 405, "This address does not take this method")
    TOKEN_MISSING = (402, 401, "A bearer token is needed: check in first")
    TOKEN_INVALID = (403, 401, "The bearer token is not valid here")
    TOKEN_EXPIRED = (404, 401, "The bearer token has expired: check in again")
    NOT_YOURS = (405, 403, "The token's device is not the one that this call concerns")
    TOO_LARGE = (406, 413, "The body is larger than this call allows")
    WRONG_CONTENT_TYPE = (407, 415, "The content type is not the one that this call takes")
    UNKNOWN_TASK = (408, 404, "No such task")
    UNKNOWN_VERSION = (409, 404, "No such version")
    UNKNOWN_WINDOW = (410, 404, "No such window")
    UNKNOWN_TICKET = (411, 404, "No such ticket")
    UNKNOWN_BLOB = (412, 404, "No such blob")
    UNKNOWN_DEVICE = (413, 404, "No such device")
    STALE_VERSION = (414, 409, "The lane is closed: its version is no longer trained")
    TASK_EXISTS = (415, 409, "A task of this name exists already")
    TASK_NOT_READY = (416, 409, "The task waits for its signed plan")
    CLOCK_SKEW = (417, 400, "The device's clock is more than ten minutes off")
    REPLAYED = (418, 409, "This check-in was seen before")
    BAD_OFFSET = (419, 409, "The chunk does not begin where the upload stands")
    UPLOAD_TOO_SLOW = (420, 408, "The upload fell below the least rate")
    UPLOAD_HASH = (421, 422, "The uploaded vector does not have the announced hash")
    PHASE_OVER = (422, 409, "This phase of the window is over")
    PHASE_NOT_YET = (423, 409, "This phase of the window has not begun")
    BUSY = (424, 503, "The server has no room for this now")
    STORAGE_FULL = (425, 507, "The server's disk is full")
    ENROLMENT_DOWN = (426, 503, "The authority's enrolment service does not answer")
    BAD_REQUEST = (427, 400, "The request cannot be read")
    BAD_RANGE = (428, 416, "The range lies outside the blob")
    POLICY_UNSATISFIABLE = (429, 422, "The task's numbers cannot satisfy the fleet's policy")
    INTERNAL = (430, 500, "The server failed; nothing was lost")
    CONFIGURATION = (431, 400, "The configuration is not valid")
    SCHEMA_NEWER = (432, 500, "The database was written by a newer server")
    DATA_DAMAGED = (433, 500, "Stored data does not have its hash")
    LENGTH_REQUIRED = (434, 411, "The body's length must be stated")

    # 5xx: the device's own troubles (they travel in reports)
    STATE_LOCKED = (500, 409, "Another process uses this state directory")
    STATE_DAMAGED = (501, 409, "The journal cannot be read")
    DATA_UNUSABLE = (502, 422, "The examples do not fit the model's inputs")
    NOT_FINITE = (503, 422, "Training gave a value that is not finite; the parameters were left alone")
    TOO_FEW_EXAMPLES = (504, 422, "Too few examples for this task")
    UNREACHABLE = (505, 503, "The server cannot be reached")
    RUNTIME_MISSING = (506, 500, "The training runtime is not installed")
    CLOCK_WRONG = (507, 409, "The device's clock is more than a day ahead")
    PLAN_UNSUPPORTED = (508, 422, "The plan asks for something that this client cannot do")

    # 6xx: models
    MODEL_REFUSED = (600, 422, "The model cannot be compiled for training")


class ProtocolError(Exception):
    """Anything that the contract has a number for."""

    def __init__(self, code: Code, detail: str = "") -> None:
        self.code = code
        self.detail = detail or code.title
        super().__init__(f"error {int(code)} ({code.name.lower()}): {self.detail}")


class WireError(ProtocolError):
    """Bytes that are not what they claim to be: malformed, too long, out of range."""


class RuleError(ProtocolError):
    """A well-formed message that breaks a rule of the protocol."""
