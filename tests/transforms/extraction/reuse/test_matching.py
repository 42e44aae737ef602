"""Keys in buckets, and the pairs of records and examples with equal keys."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transforms.examples.format import InputFile
from transforms.extraction.reuse.matching import bucketed, example_key, match_examples
from transforms.storage.filesystems import StoredFile


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=40), st.integers(1, 7))
def test_every_key_is_in_one_bucket_and_equal_keys_in_the_same(
    keys: list[bytes], buckets: int
) -> None:
    bucket_of: dict[bytes, int] = {}
    seen = []
    for bucket, places, joined in bucketed(keys, buckets):
        assert 0 <= bucket < buckets
        assert joined == b"".join(keys[place] for place in places)
        seen += places.tolist()
        for place in places:
            assert bucket_of.setdefault(keys[place], bucket) == bucket
    assert sorted(seen) == list(range(len(keys)))


PLACES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3)), max_size=30)


@given(base=PLACES, new=PLACES)
def test_matches_are_the_pairs_with_equal_id_and_content(
    base: list[tuple[int, int, int]], new: list[tuple[int, int, int]]
) -> None:
    """Each is (file, id, content); a place in a file is the order in the list. Ids are unique in a
    base.
    """
    base = list({number: (file, number, content) for file, number, content in base}.values())

    def by_file(entries: list[tuple[int, int, int]]) -> dict[int, list[tuple[int, int, int]]]:
        return {file: [entry for entry in entries if entry[0] == file] for file in range(3)}

    def element(owner: object, entries: list[tuple[int, int, int]]) -> tuple:
        keys = [
            example_key(str(number).encode(), bytes([content])) for _, number, content in entries
        ]
        return owner, np.arange(len(entries)), b"".join(keys)

    here, there = by_file(new), by_file(base)
    elements = [
        element(StoredFile(f"b{file}", 1, 1, len(entries)), entries)
        for file, entries in there.items()
    ]
    elements += [
        element(InputFile(file, f"n{file}", "", 1), entries) for file, entries in here.items()
    ]
    matched = set()
    for match in match_examples(elements[::-1]):
        for row, offset in zip(match.rows.tolist(), match.offsets.tolist(), strict=True):
            old, now = there[int(match.stored.name[1:])][row], here[match.file.index][offset]
            assert old[1:] == now[1:]
            assert now[1:] not in matched
            matched.add(now[1:])
    assert matched == {entry[1:] for entry in base} & {entry[1:] for entry in new}
