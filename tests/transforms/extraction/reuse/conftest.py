"""The command that extracts a directory of examples, with a base or without."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tests.conftest import Outcome, Tiny

Run = Callable[..., Outcome]


@pytest.fixture
def extract(tracin: Run, tiny: Tiny, tmp_path: pathlib.Path) -> Run:
    """Runs `tracin features` on a directory of examples; returns its outcome, and leaves its
    counters.
    """

    def run(examples: str, output: str, *words: str, id_key: bool = True) -> Outcome:
        return tracin(
            "features",
            f"--examples={tmp_path / examples}/*",
            f"--checkpoints={tiny.glob}",
            f"--output={tmp_path / output}",
            *(["--id_key=id"] if id_key else []),
            *words,
        )

    return run
