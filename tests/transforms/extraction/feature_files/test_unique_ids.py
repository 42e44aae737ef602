"""An id that is used twice is found, in one file or several, in one attempt or two."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from tests.conftest import Outcome, Tiny, write_records
from tests.fakes.models import dying_at
from tests.stage_one import assert_one_line, extract_set
from transforms.extraction.feature_files.unique_ids import repeated_hashes
from transforms.runtime import counters
from transforms.storage import manifests

Run = Callable[..., Outcome]


@pytest.mark.parametrize("together", [True, False], ids=["one file", "two files"])
def test_an_id_used_twice_fails_the_run_and_both_records_are_named(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, together: bool
) -> None:
    payloads = tiny.payloads()[:8]
    payloads[6] = payloads[1]
    directory = tmp_path / "in"
    for name, part in (
        (("s-0", payloads),) if together else (("s-0", payloads[:4]), ("s-1", payloads[4:]))
    ):
        write_records(directory / name, part)
    outcome = extract(directory / "s-*")
    assert outcome.status == 1
    second = f"{directory}/s-0 record 6" if together else f"{directory}/s-1 record 2"
    assert_one_line(outcome.err, "'ex-01'", f"{directory}/s-0 record 1", second)
    assert manifests.read_if_any(str(tmp_path / "out"), "output") is None


def test_an_id_used_twice_is_found_across_attempts(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    for shard in range(2):
        write_records(tmp_path / "in" / f"s-{shard}", tiny.payloads()[:5])
    with pytest.raises(Exception, match="the worker died"):
        extract_set(tiny.paths, tmp_path / "in" / "s-*", tmp_path / "out", kind=dying_at(2))
    outcome = extract(tmp_path / "in" / "s-*")
    assert outcome.status == 1 and counters.snapshot()["examples-reused"] == 5
    assert_one_line(outcome.err, "is used twice", "s-0", "s-1")


def test_repeated_hashes_are_found_across_files_and_in_order() -> None:
    def part(name: str, rows: Iterable[int], hashes: Iterable[int]) -> tuple[str, bytes, bytes]:
        return (
            name,
            np.array(list(rows), np.int32).tobytes(),
            np.array(list(hashes), np.uint64).tobytes(),
        )

    assert repeated_hashes([part("a", [0, 1], [7, 8]), part("b", [5], [9])]) == []
    groups = repeated_hashes([part("a", [3, 1, 2], [7, 7, 8]), part("b", [0, 4], [8, 7])])
    assert groups == [[("a", 1), ("a", 3), ("b", 4)], [("a", 2), ("b", 0)]]
    assert len(repeated_hashes([part("a", range(40), [i // 2 for i in range(40)])])) == 5
