"""A base that cannot serve is refused."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import pytest

from tests.conftest import Outcome, Tiny, damage, write_records

Run = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("base", "words", "parts"),
    [
        (
            "one",
            ["--labels=predicted"],
            ("--base=", "was extracted with other settings (label_key was", "labels was"),
        ),
        ("one", ["--feature_dtype=bfloat16"], ('feature_dtype was "float32", is "bfloat16"',)),
        ("nowhere", [], ("nowhere", "is not a complete set")),
        ("two", [], ("is where the new set would go",)),
    ],
)
def test_a_base_that_cannot_serve_is_refused_in_one_line(
    extract: Run,
    tiny: Tiny,
    tmp_path: pathlib.Path,
    base: str,
    words: list[str],
    parts: Sequence[str],
) -> None:
    write_records(tmp_path / "a" / "s-0", tiny.payloads())
    assert extract("a", "one").status == 0
    outcome = extract("a", "two", f"--base={tmp_path / base}", *words)
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    for part in parts:
        assert part in outcome.err
    assert not (tmp_path / "two").exists()


def test_a_damaged_base_fails_the_run_and_nothing_of_it_is_used(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    write_records(tmp_path / "a" / "s-0", tiny.payloads())
    assert extract("a", "one").status == 0
    (file,) = (tmp_path / "one").glob("features-*")
    damage(file, 500)
    outcome = extract("a", "two", f"--base={tmp_path / 'one'}")
    assert outcome.status == 1
    assert f"{file} is damaged" in outcome.err
    assert not (tmp_path / "two" / "manifest.json").exists()
