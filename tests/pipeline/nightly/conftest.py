"""The store of the nights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import object_store
from tests.fakes.object_store import Store


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store.running() as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://{store.host}")
        yield store
