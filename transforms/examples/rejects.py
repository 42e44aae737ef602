"""Rejected examples and the reasons: one line of JSON for each example without features."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import orjson

# Reasons, as manifests and summaries count them. A reject's detail says more.
BAD_CHECKSUM = "bad-checksum"
NOT_AN_EXAMPLE = "not-an-example"
MISSING_KEY = "missing-key"
WRONG_TYPE = "wrong-type"
WRONG_SIZE = "wrong-size"
BAD_IMAGE = "bad-image"
BAD_ID = "bad-id"
BAD_LABEL = "bad-label"
NON_FINITE_INPUT = "non-finite-input"
NON_FINITE_FEATURES = "non-finite-features"
PARSE_FN_FAILED = "parse-fn-failed"
NO_POSITIONS = "no-positions"
UNREADABLE_TAIL = "unreadable-tail"


class Unusable(Exception):
    """A part of an example cannot be used, so that the example is rejected.

    Attributes:
        reason: one of the reasons above.
        detail: what is wrong, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Reject:
    """An example that was rejected.

    Attributes:
        source: path of its file.
        offset: its record index there.
        example_id: its id, or None where it could not be read.
        reason: one of the reasons above.
        detail: what is wrong, for a person.
    """

    source: str
    offset: int
    example_id: str | None
    reason: str
    detail: str


def to_jsonl(rejects: Iterable[Reject]) -> bytes:
    """Returns one line of JSON for each reject."""
    return b"".join(orjson.dumps(dataclasses.asdict(reject)) + b"\n" for reject in rejects)


def from_jsonl(data: bytes) -> list[Reject]:
    """Reads the lines of `to_jsonl`."""
    return [Reject(**orjson.loads(line)) for line in data.splitlines()]


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Counts rejects by reason, the most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())
