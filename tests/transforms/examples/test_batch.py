"""Batches without some of their examples, and content digests."""

from __future__ import annotations

import numpy as np
import xxhash

from tests.conftest import example
from tests.sample_examples import PIXELS, SIX, batch_of, ids
from transforms.examples.batch import digest, digests
from transforms.examples.format import ExampleFormat


def test_a_batch_keeps_all_of_the_examples_that_are_taken_and_its_rejects() -> None:
    form = ExampleFormat((PIXELS,), id_key="id", keep_keys=("city",))
    serialized = [
        example(image=np.add(SIX, i), label=i, id=f"ex-{i}", city=f"c{i}") for i in range(4)
    ]
    batch = batch_of(form, [*serialized, b"no example"])
    rows = np.array([3, 1])
    taken = batch.take(rows)
    assert len(taken) == 2 and ids(taken) == ["ex-3", "ex-1"]
    assert taken.offsets.tolist() == [13, 11]
    assert [row.tobytes() for row in taken.digests] == [digest(serialized[i]) for i in rows]
    assert taken.kept == {"city": [batch.kept["city"][3], batch.kept["city"][1]]}
    assert taken.inputs[0].tobytes() == batch.inputs[0][rows].tobytes()
    assert taken.labels is not None and taken.labels.tolist() == [[3.0], [1.0]]
    assert taken.rejects == batch.rejects and len(batch.rejects) == 1


def test_a_content_digest_is_xxh3_of_the_record() -> None:
    records = [b"a", b"", b"a" * 300]
    assert [row.tobytes() for row in digests(records)] == [
        xxhash.xxh3_128(record).digest() for record in records
    ]
    assert digests([]).shape == (0, 16)
