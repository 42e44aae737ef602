"""Bad examples are rejected, and the others are untouched."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.conftest import SHAPE, Outcome, Tiny, example, write_records
from tests.sample_examples import with_bad
from tests.stage_one import assert_same_features, read_rejects, read_set
from transforms.examples import rejects

Run = Callable[..., Outcome]


@pytest.mark.parametrize("batch_size", [4, 256])
def test_bad_records_are_rejected_and_the_others_are_untouched(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, batch_size: int
) -> None:
    path, expected = with_bad(tiny, tmp_path / "in")
    outcome = extract(
        tmp_path / "in" / "s-*", f"--batch_size={batch_size}", "--max_rejected_fraction=0.2"
    )
    assert outcome.status == 0, outcome.err
    manifest, records, _ = read_set(tmp_path / "out")
    assert manifest.counts == {"examples": 33, "rejected": 7}
    assert manifest.rejected == {reason: 1 for _, _, reason in expected}
    assert sum(file.count for file in manifest.rejected_files) == 7
    rejected = read_rejects(tmp_path / "out")
    assert (
        sorted((reject.offset, reject.example_id, reject.reason) for reject in rejected) == expected
    )
    assert {reject.source for reject in rejected} == {str(path)}
    assert all(reject.detail for reject in rejected)
    assert "7 rejected" in outcome.out and "bad-checksum 1" in outcome.out
    assert extract(write_records(tmp_path / "whole", tiny.payloads()), output="clean").status == 0
    gone = {index for index, _, _ in expected}
    clean = read_set(tmp_path / "clean")[1]
    assert_same_features(records, clean.take(np.array([i not in gone for i in range(40)])))


def test_a_model_that_gives_a_nan_costs_that_example(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = tiny.payloads()[:10]
    payloads[4] = example(image=np.full(SHAPE, 3e38), label=0, id="huge")
    assert (
        extract(
            write_records(tmp_path / "examples", payloads), "--max_rejected_fraction=0.5"
        ).status
        == 0
    )
    manifest, records, _ = read_set(tmp_path / "out")
    assert manifest.rejected == {rejects.NON_FINITE_FEATURES: 1}
    (reject,) = read_rejects(tmp_path / "out")
    assert (reject.offset, reject.example_id) == (4, "huge")
    assert len(records) == 9 and np.isfinite(records.loss_grads).all()


def test_features_beyond_float16_are_rejected(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    large = example(image=tiny.images[0] * 1e6, label=int(tiny.labels[0]), id="large")
    examples = write_records(tmp_path / "examples", [large, *tiny.payloads()])
    words = ("--feature_dtype=float16", "--max_rejected_fraction=0.1")
    assert extract(examples, *words).status == 0
    (reject,) = read_rejects(tmp_path / "out")
    assert (reject.example_id, reject.reason) == ("large", rejects.NON_FINITE_FEATURES)
    assert "beyond float16" in reject.detail
    assert extract(examples, "--feature_dtype=bfloat16", output="wide").status == 0
    assert not read_rejects(tmp_path / "wide")
