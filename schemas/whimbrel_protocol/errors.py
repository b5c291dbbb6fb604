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

    # 2xx: signed objects and enrolment
    BAD_SIZE = (200, 400, "A fixed-layout object does not have its exact length")
    BAD_MAGIC = (201, 400, "A fixed-layout object does not begin with the letters of its kind")
    BAD_FIELD = (202, 400, "A field of a fixed-layout object is outside its limits")
    BAD_SPEC = (203, 422, "The vector spec contradicts itself")
    BAD_BITMAP = (204, 400, "A bitmap has a wrong length or a padding bit that is set")
    BAD_CERTIFICATE = (205, 403, "The certificate is not signed by the fleet's authority or one of its issuers")
    CERTIFICATE_EXPIRED = (206, 403, "The certificate is not valid now")
    CERTIFICATE_REVOKED = (207, 403, "The certificate's epoch is below the policy's")
    OTHER_FLEET = (208, 403, "The object belongs to another fleet")
    KEY_MISMATCH = (209, 403, "The certificate does not name this device and its key")
    WEAK_KEY = (210, 422, "The public key is not a point of the prime-order subgroup")
    BAD_REQUEST_SIGNATURE = (211, 403, "The request is not signed by the key that it names")
    BAD_POLICY = (212, 403, "The policy is not signed by the fleet's authority")
    POLICY_ROLLED_BACK = (213, 409, "The policy is older than one seen before")
    POLICY_EXPIRED = (214, 403, "The policy is past its date or dated too far ahead")
    POLICY_TOO_WEAK = (215, 422, "The policy's numbers protect too little")
    BAD_PLAN = (216, 403, "The plan is not signed by a plan signer of the policy")
    PLAN_ROLLED_BACK = (217, 409, "The plan is older than one seen before for its task")
    PLAN_EXPIRED = (218, 403, "The plan is past its date")
    PLAN_OTHER_TASK = (219, 403, "The plan is for another task")
    PLAN_UNMASKED = (220, 403, "The plan turns masks off and the policy does not allow that")
    ENROLMENT_TOKEN = (221, 403, "The enrolment token is unknown, used up or past its date")
    DEVICE_TAKEN = (222, 409, "The device id or the key is enrolled already with another key or device")
    DEVICE_REVOKED = (223, 403, "The authority revoked this device")
    RENEWAL_TOO_LATE = (224, 403, "The certificate expired too long ago: enrol again")

    # 3xx: rules of the masking window
    OUT_OF_TURN = (300, 409, "The window's state does not take this message")
    SECOND_BODY = (301, 409, "A different message was accepted for this phase before")
    WINDOW_ENDED = (302, 409, "This member left the window and holds no keys any more")
    LOW_ORDER_KEY = (303, 422, "Key agreement gives an all-zero secret")
    BAD_SIGNATURE = (304, 403, "The signature does not verify")
    UPDATE_OUT_OF_RANGE = (305, 422, "A value of the update or its weight is outside the spec's limits")
    UPDATE_CHANGED = (306, 409, "The packed update changed after it was masked")

    OPEN_MALFORMED = (310, 422, "OPEN: the parameters or an entry cannot be read")
    OPEN_FLEET = (311, 422, "OPEN: another fleet")
    OPEN_LANE = (312, 422, "OPEN: another lane")
    OPEN_POLICY_NEWER = (313, 409, "OPEN: a newer policy arrived after the join")
    OPEN_COUNT = (314, 422, "OPEN: the number of entries is not n")
    OPEN_TOO_SMALL = (315, 422, "OPEN: fewer members than the policy allows")
    OPEN_TOO_LARGE = (316, 422, "OPEN: more members than the policy or the spec allows")
    OPEN_CORRUPT_COUNT = (317, 422, "OPEN: c does not follow from the policy's gamma")
    OPEN_THRESHOLD_LOW = (318, 422, "OPEN: the threshold lets two quorums share no honest member")
    OPEN_THRESHOLD_HIGH = (319, 422, "OPEN: the threshold is above the number of members")
    OPEN_FLOOR_LOW = (320, 422, "OPEN: the survivor floor is below the threshold or the policy's floor")
    OPEN_FLOOR_HIGH = (321, 422, "OPEN: the survivor floor is above the number of members")
    OPEN_GRAPH_SPARSE = (322, 422, "OPEN: the mask graph may fall apart")
    ENTRY_FLEET = (323, 422, "OPEN: an entry or its certificate belongs to another fleet")
    ENTRY_DEVICE = (324, 422, "OPEN: an entry and its certificate name different devices")
    ENTRY_LANE = (325, 422, "OPEN: an entry of another lane")
    ENTRY_CERTIFICATE_DATES = (326, 422, "OPEN: an entry's certificate is not valid now")
    ENTRY_EXPIRED = (327, 422, "OPEN: an entry has expired")
    ENTRY_EPOCH = (328, 422, "OPEN: an entry's certificate was revoked")
    ENTRY_CERTIFICATE = (329, 422, "OPEN: an entry's certificate is not the authority's")
    ENTRY_SIGNATURE = (330, 422, "OPEN: an entry is not signed by its certificate's key")
    ROSTER_ORDER = (331, 422, "OPEN: device ids do not ascend strictly")
    ROSTER_KEYS = (332, 422, "OPEN: two window keys are equal")
    ROSTER_OWN_ENTRY = (333, 422, "OPEN: the own entry is missing or changed")

    U2_MALFORMED = (340, 422, "U2: the bitmap or the ciphertexts have a wrong size")
    U2_WITHOUT_SELF = (341, 422, "U2: this member is not in it")
    U2_TOO_SMALL = (342, 422, "U2: fewer members than the survivor floor")
    U2_SHARES_MISSING = (343, 422, "U2: fewer readable shares than the survivor floor")

    SURVIVORS_MALFORMED = (350, 422, "SURVIVORS: the bitmap or the signatures have a wrong size")
    SURVIVORS_NOT_IN_U2 = (351, 422, "SURVIVORS: a member that is not in U2")
    SURVIVORS_TOO_FEW = (352, 422, "SURVIVORS: fewer members than the survivor floor")
    SURVIVORS_SIGNATURE = (353, 422, "SURVIVORS: a member did not sign this U2")
    VOTED_BEFORE = (354, 409, "The one vote of this window was cast before")

    QUORUM_MALFORMED = (360, 422, "QUORUM: bitmap, kind or signatures have a wrong form")
    QUORUM_TOO_FEW = (361, 422, "QUORUM: fewer votes than the threshold")
    QUORUM_INDICES = (362, 422, "QUORUM: indices do not ascend strictly below n")
    QUORUM_OTHER_BODY = (363, 422, "QUORUM: not the body that this member voted for")
    QUORUM_SIGNATURE = (364, 422, "QUORUM: a vote's signature does not verify")
    DONE_LANE = (365, 422, "DONE: another lane")
    BLAME_OTHER_WINDOW = (366, 422, "BLAME: another window than the one that this member masked in")
    BLAME_NOT_SURVIVED = (367, 422, "BLAME: this member's vector is not in the sum")

    ENTRY_SHORT_LIVED = (370, 422, "JOIN: the entry expires too soon or too late")
    SHARES_MALFORMED = (371, 422, "SHARES: not the sizes or the window of this roster")
    MASKED_MALFORMED = (372, 422, "MASKED: not the window, the words or the members of this cohort")
    UNMASK_MALFORMED = (373, 422, "UNMASK: bitmap and shares do not fit this cohort")
    NO_SUCH_MEMBER = (374, 422, "The index names no member of this phase")
    SHORTAGE = (375, 409, "Too few members are left to go on: ask for the abort")
    TOO_LATE = (376, 409, "Right, but too late: this phase is over")
    BAD_SHARES = (377, 422, "A member's shares do not give the secret that it committed to")
    SPOILED_SUM = (378, 422, "The window's sum fails its checks: a member sent a wrong vector")
    CANARIES_MALFORMED = (379, 422, "CANARIES: bitmap and masks do not fit this cohort")

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
    QUARANTINED = (435, 403, "This device was blamed for a window that went wrong and gets no work for a while")
    STATE_ROLLED_BACK = (436, 409, "The device's join counter went back: its state is an old copy, or another process has it")

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
    CONTRIBUTION_CAP = (509, 409, "The plan allows no more contributions of one device in this period")
    CONTRIBUTED_BEFORE = (510, 409, "This device contributed to this base before, or may have")
    STATE_COPIED = (511, 409, "This state directory is a copy: spent updates may be forgotten, enrol anew")

    # 6xx: models
    MODEL_REFUSED = (600, 422, "The model cannot be compiled for training")


class ProtocolError(Exception):
    """Anything that the contract has a number for; `come_back_s`: when the same may succeed, seconds from now (0: unknown)."""

    def __init__(self, code: Code, detail: str = "", come_back_s: int = 0) -> None:
        self.code = code
        self.come_back_s = come_back_s
        self.detail = detail or code.title
        super().__init__(f"error {int(code)} ({code.name.lower()}): {self.detail}")


class WireError(ProtocolError):
    """Bytes that are not what they claim to be: malformed, too long, out of range."""


class RuleError(ProtocolError):
    """A well-formed message that breaks a rule of the protocol."""
