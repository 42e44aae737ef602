"""Groups of duplicates against sets joined pair by pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transforms.duplicates.groups import group


@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 15)).filter(lambda pair: pair[0] < pair[1]),
        max_size=20,
    ),
    st.integers(1, 3),
)
def test_groups_are_what_is_connected(pairs, labels):
    records = np.array(pairs, np.int64).reshape(-1, 2) * 1_000_000_007
    label = (records // 1_000_000_007 % labels).astype(np.int32)
    own = np.linspace(0.5, 1, len(pairs))
    found = group(records, label, own)
    expected: list[set[int]] = []
    for a, b in records.tolist():
        touched = [one for one in expected if a in one or b in one]
        expected = [one for one in expected if one not in touched] + [{a, b}.union(*touched)]
    mixed = {min(one): len({m // 1_000_000_007 % labels for m in one}) > 1 for one in expected}
    expected.sort(key=lambda one: (not mixed[min(one)], min(one)))
    assert found.records.tolist() == [m for one in expected for m in sorted(one)]
    assert found.numbers.tolist() == [i for i, one in enumerate(expected) for _ in one]
    assert found.conflicting.tolist() == [mixed[min(one)] for one in expected for _ in one]
    for record, value in zip(found.records.tolist(), found.similarities.tolist(), strict=True):
        assert value == max(
            s for pair, s in zip(records.tolist(), own.tolist(), strict=True) if record in pair
        )
