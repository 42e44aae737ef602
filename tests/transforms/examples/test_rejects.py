"""Rejects as lines of JSON, and how many of each reason."""

from __future__ import annotations

import json

from transforms.examples import rejects
from transforms.examples.rejects import Reject

REJECTS = [
    Reject("in/é", 3, "a", rejects.BAD_ID, "the id is …"),
    Reject("in/é", 1, None, rejects.BAD_LABEL, "line\nbreak"),
    Reject("other", 0, "b", rejects.BAD_LABEL, ""),
]


def test_rejects_are_a_line_of_json_each_and_come_back() -> None:
    data = rejects.to_jsonl(REJECTS)
    assert [json.loads(line) for line in data.decode().splitlines()] == [
        {
            "source": reject.source,
            "offset": reject.offset,
            "example_id": reject.example_id,
            "reason": reject.reason,
            "detail": reject.detail,
        }
        for reject in REJECTS
    ]
    assert rejects.from_jsonl(data) == REJECTS
    assert rejects.to_jsonl([]) == b"" and rejects.from_jsonl(b"") == []


def test_the_most_frequent_reason_is_counted_first() -> None:
    assert list(rejects.count_reasons(REJECTS).items()) == [
        (rejects.BAD_LABEL, 2),
        (rejects.BAD_ID, 1),
    ]
