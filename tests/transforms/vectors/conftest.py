"""Feature sets to make vectors of."""

from __future__ import annotations

import pathlib

import pytest

from tests.synthetic import write_set


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_set(tmp_path_factory.mktemp("train"), [150, 0, 130], 1, "train-")


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_set(tmp_path_factory.mktemp("test"), [30, 11], 2, "test-")
