"""What was set aside and why: one line of JSON for each example that has no features."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import orjson

# The reasons, as they are counted in manifests and summaries. `detail` says the rest.
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


@dataclasses.dataclass(frozen=True)
class Reject:
    """An example that was set aside: its file, its index there, its id where one could be read, the
    reason and the details.
    """

    source: str
    offset: int
    example_id: str | None
    reason: str
    detail: str


def to_jsonl(rejects: Iterable[Reject]) -> bytes:
    """One line of JSON for each reject."""
    return b"".join(orjson.dumps(dataclasses.asdict(reject)) + b"\n" for reject in rejects)


def from_jsonl(data: bytes) -> list[Reject]:
    """The inverse of `to_jsonl`."""
    return [Reject(**orjson.loads(line)) for line in data.splitlines()]


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """How many were set aside for each reason, most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())
