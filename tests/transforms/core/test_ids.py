"""Ids of positions, and of their examples."""

from __future__ import annotations

from transforms.core.ids import example_of, record_id


def test_ids() -> None:
    assert record_id(b"a@b", 12) == b"a@b@12"
    assert example_of(b"a@b@12") == b"a@b"
