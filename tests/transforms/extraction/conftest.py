"""The command that extracts the features of the tiny network, as several tests run it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tests.conftest import Outcome, Tiny

Run = Callable[..., Outcome]


@pytest.fixture
def extract(tracin: Run, tiny: Tiny, tmp_path: pathlib.Path) -> Callable[..., Outcome]:
    """Runs `tracin features` on the tiny network, with ids by key, into `tmp_path/out`; further
    flags replace these.
    """

    def run(
        examples: pathlib.Path | str,
        *words: str,
        output: str = "out",
        model: Tiny | None = None,
        id_key: bool = True,
    ) -> Outcome:
        return tracin(
            "features",
            f"--examples={examples}",
            f"--checkpoints={(model or tiny).glob}",
            f"--output={tmp_path / output}",
            *(["--id_key=id"] if id_key else []),
            "--runner=FnApiRunner",
            *words,
        )

    return run
