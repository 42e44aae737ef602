"""Which test examples a person is shown, and where what is shown of them comes from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from transforms import records, sinks, traces
from transforms.manifest import FeatureManifest
from transforms.records import Features, Origin
from transforms.scores import FeatureSet, ScoredBlock
from transforms.topk import Ranking, TopK


def block(ids: list[str], label_probabilities: np.ndarray, self_influence: np.ndarray, candidates: int = 8) -> ScoredBlock:
    n = len(ids)
    rows = np.repeat(np.arange(n, dtype=np.int32), candidates)
    scores = np.tile(np.arange(candidates, 0, -1.0), n)
    names = np.array([f"train-{i % 97}".encode() for i in range(n * candidates)])
    own = label_probabilities.astype(np.float32)
    best = TopK(Ranking(rows, scores, names, np.zeros((len(rows), 1), int)), Ranking(rows, -scores, names, np.ones((len(rows), 1), int)))
    return ScoredBlock(
        records.id_array([one.encode() for one in ids]), np.zeros((n, 1), int), np.zeros((n, 1), int), own, own, self_influence, best
    )


@pytest.mark.parametrize("known", [True, False])
def test_shown_are_the_least_probable_or_else_the_most_influenced(known):
    rng = np.random.default_rng(0)
    # With ties across the border of what is shown.
    probabilities = rng.integers(0, 10, 200) / 10 if known else np.full(200, np.nan)
    influence = rng.integers(0, 3, 200).astype(float)
    ids = [f"test-{i:03d}" for i in rng.permutation(200)]
    parts = [block(ids[a : a + 50], probabilities[a : a + 50], influence[a : a + 50]) for a in range(0, 200, 50)]
    schema = sinks.schema("class", 3)

    def of_file(blocks: list[ScoredBlock]) -> list[traces.Trace]:
        return traces.of_rows(pa.concat_tables([sinks.to_table(one, schema) for one in blocks]), blocks)

    found = traces.worst([*of_file(parts[:1]), *of_file(parts[1:])])
    order = sorted(range(200), key=lambda i: (np.float32(probabilities[i]) if known else 0, -influence[i], ids[i]))
    assert [one.row["test_id"] for one in found] == [ids[i] for i in order[:50]]
    assert all(len(one.row["proponents"]) == len(one.row["opponents"]) == 5 for one in found)
    assert all(np.isnan(one.label_probability) != known for one in found)


def test_origins_are_those_of_the_wanted_ids(tmp_path):
    from transforms import files, tfrecords

    labels, ones = np.zeros((6, 1), int), np.ones((6, 1, 1))
    factors = (np.repeat(ones, 3, axis=2), np.repeat(ones, 4, axis=2))
    features = Features.of([f"ex-{i}" for i in range(6)], labels, labels, np.ones(6), np.ones((6, 1)), *factors)
    payloads = records.encode(features, [Origin(f"file-{i % 2}", i, bytes([i] * 16)) for i in range(6)])
    assert records.example_ids(payloads) == [f"ex-{i}".encode() for i in range(6)]
    written = files.write(str(tmp_path), "features-0.tfrecord", tfrecords.join_frames(payloads), 6)
    found = FeatureSet(str(tmp_path), FeatureManifest("features", "", {}, (written,), {}, "", "class", 3, 4, ("a",), (1.0,), (), {}))
    assert list(traces.find_origins(0, found, {"ex-1", "ex-4", "no"})) == [
        ("file-1", ("ex-1", Origin("file-1", 1, bytes([1] * 16)))),
        ("file-0", ("ex-4", Origin("file-0", 4, bytes([4] * 16)))),
    ]
    assert list(traces.find_origins(0, found, set())) == []
