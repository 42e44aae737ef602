"""Which test examples a person is shown, and where what is shown of them comes from."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import pytest

from transforms.core.features import Features
from transforms.core.ids import id_array
from transforms.core.origins import Origin
from transforms.core.topk import Ranking, TopK
from transforms.influence import traces
from transforms.influence.records import RecordBlock, RecordScoring
from transforms.influence.rows import to_table
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import feature_record


def block(
    ids: list[str], label_probabilities: np.ndarray, self_influence: np.ndarray, candidates: int = 8
) -> RecordBlock:
    n = len(ids)
    rows = np.repeat(np.arange(n, dtype=np.int32), candidates)
    scores = np.tile(np.arange(candidates, 0, -1.0), n)
    names = np.array([f"train-{i % 97}".encode() for i in range(n * candidates)])
    own = label_probabilities.astype(np.float32)
    best = TopK(
        Ranking(rows, scores, names, np.zeros((len(rows), 1), int)),
        Ranking(rows, -scores, names, np.ones((len(rows), 1), int)),
    )
    return RecordBlock(
        test_ids=id_array([one.encode() for one in ids]),
        label_probabilities=own,
        self_influence=self_influence,
        best=best,
        labels=np.zeros((n, 1), int),
        predictions=np.zeros((n, 1), int),
        probabilities=own,
    )


@pytest.mark.parametrize("known", [True, False])
def test_shown_are_the_least_probable_or_else_the_most_influenced(known):
    rng = np.random.default_rng(0)
    # With ties across the border of what is shown.
    probabilities = rng.integers(0, 10, 200) / 10 if known else np.full(200, np.nan)
    influence = rng.integers(0, 3, 200).astype(float)
    ids = [f"test-{i:03d}" for i in rng.permutation(200)]
    parts = [
        block(ids[a : a + 50], probabilities[a : a + 50], influence[a : a + 50])
        for a in range(0, 200, 50)
    ]
    fields = RecordScoring().schema("class", 3)

    def of_file(blocks: list[RecordBlock]) -> list[traces.Trace]:
        return traces.of_rows(pa.concat_tables([to_table(one, fields) for one in blocks]), blocks)

    found = traces.worst([*of_file(parts[:1]), *of_file(parts[1:])])
    order = sorted(
        range(200),
        key=lambda i: (np.float32(probabilities[i]) if known else 0, -influence[i], ids[i]),
    )
    assert [one.row["test_id"] for one in found] == [ids[i] for i in order[:50]]
    assert all(len(one.row["proponents"]) == len(one.row["opponents"]) == 5 for one in found)
    assert all(np.isnan(one.label_probability) != known for one in found)


def stored(directory: pathlib.Path, ids: list[str], places: list[int]) -> FeatureSet:
    """A feature set of one file, whose records came from these places of two files."""
    from transforms.storage import filesystems
    from transforms.storage.records import tfrecords

    n = len(ids)
    labels, ones = np.zeros((n, 1), int), np.ones((n, 1, 1))
    factors = (np.repeat(ones, 3, axis=2), np.repeat(ones, 4, axis=2))
    features = Features.of(
        [one.encode() for one in ids], labels, labels, np.ones(n), np.ones((n, 1)), *factors
    )
    payloads = feature_record.encode(
        features, [Origin(f"file-{i % 2}", i, bytes([i] * 16)) for i in places]
    )
    assert feature_record.example_ids(payloads) == [one.encode() for one in ids]
    written = filesystems.write(
        str(directory), "features-0.tfrecord", tfrecords.join_frames(payloads), n
    )
    return FeatureSet(
        str(directory),
        FeatureManifest(
            "features", "", {}, (written,), {}, "", "class", 3, 4, ("a",), (1.0,), (), {}
        ),
    )


def test_origins_are_those_of_the_wanted_ids(tmp_path):
    found = stored(tmp_path, [f"ex-{i}" for i in range(6)], list(range(6)))
    assert list(traces.find_origins(0, found, {"ex-1", "ex-4", "no"})) == [
        ("file-1", ("ex-1", Origin("file-1", 1, bytes([1] * 16)))),
        ("file-0", ("ex-4", Origin("file-0", 4, bytes([4] * 16)))),
    ]
    assert list(traces.find_origins(0, found, set())) == []


def test_the_origin_of_an_example_is_that_of_its_positions_told_once(tmp_path):
    places = [3, 3, 5, 6, 6, 6]
    found = stored(tmp_path, [f"ex@{place}@{i}" for i, place in enumerate(places)], places)
    assert list(traces.find_origins(0, found, {"ex@3", "ex@6", "ex"}, positions=True)) == [
        ("file-1", ("ex@3", Origin("file-1", 3, bytes([3] * 16)))),
        ("file-0", ("ex@6", Origin("file-0", 6, bytes([6] * 16)))),
    ]
