"""Scoring and writing composed in a pipeline of one's own, against the command."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import apache_beam as beam
import numpy as np
import pytest

from tests.conftest import Outcome
from tests.synthetic import write_set
from tests.transforms.scoring.test_gradients import positions, ragged
from transforms.core.errors import InputError
from transforms.influence.config import InfluenceReportConfig, ScoringConfig
from transforms.influence.score import ScoreInfluence
from transforms.influence.write import WriteInfluence
from transforms.storage import manifests
from transforms.storage.read_feature_set import ReadFeatureSet

NAMES = ("ant", "bee", "cat")


def run(
    sets: tuple[str, str],
    output: pathlib.Path,
    config: ScoringConfig,
    report: InfluenceReportConfig,
    overwrite: bool = False,
) -> None:
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        features = tuple(
            pipeline | f"Read{name}" >> ReadFeatureSet(directory)
            for name, directory in zip(("Test", "Train"), sets, strict=True)
        )
        blocks = features | ScoreInfluence(config)
        (blocks, *features) | WriteInfluence(str(output), config, report, overwrite)


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def stored(directory: pathlib.Path, summed: bool) -> tuple[str, str]:
    """A test set and a training set, of examples or of positions."""
    if not summed:
        test, train = write_set(directory / "test", [9, 14], 1, "t"), [40, 50, 20]
        return str(test), str(write_set(directory / "train", train, 2, "x"))
    rng, sets = np.random.default_rng(8), []
    for name, examples in (("test", 11), ("train", 60)):
        sizes = ragged(rng, examples, 5)
        records = positions(rng, sizes, 2, 3, 6, name)
        counts = {"examples": examples, "positions": sum(sizes)}
        path = write_set(
            directory / name, [sum(sizes)], 0, name, records, per_token=True, counts=counts
        )
        sets.append(str(path))
    return sets[0], sets[1]


@pytest.mark.parametrize("summed", [False, True])
def test_a_pipeline_of_ones_own_writes_the_bytes_of_the_command(
    summed: bool, tracin: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    sets = stored(tmp_path, summed)
    (tmp_path / "names").write_text("\n".join(NAMES))
    config = ScoringConfig(
        k=4, normalize="cosine", sum_positions=summed, test_rows_per_tile=5, train_rows_per_tile=30
    )
    run(sets, tmp_path / "own", config, InfluenceReportConfig(NAMES))
    outcome = tracin(
        "score",
        f"--test_features={sets[0]}",
        f"--train_features={sets[1]}",
        f"--output={tmp_path / 'command'}",
        f"--class_names={tmp_path / 'names'}",
        "--k=4",
        "--normalize=cosine",
        "--runner=FnApiRunner",
        *(["--sum_positions"] if summed else []),
    )
    assert outcome.status == 0, outcome.err
    assert content(tmp_path / "own") == content(tmp_path / "command")


def test_a_result_stands_is_refused_or_withdrawn_as_by_the_command(tmp_path: pathlib.Path) -> None:
    sets, output, report = stored(tmp_path, False), tmp_path / "out", InfluenceReportConfig()
    run(sets, output, ScoringConfig(k=4), report)
    before = content(output)
    run(sets, output, ScoringConfig(k=4), report)
    assert content(output) == before
    with pytest.raises(Exception, match=r"is complete with other settings \(k was 4, is 5\)"):
        run(sets, output, ScoringConfig(k=5), report)
    assert content(output) == before
    run(sets, output, ScoringConfig(k=5), report, overwrite=True)
    assert manifests.read(str(output), manifests.Manifest, "output").settings["k"] == 5


@pytest.mark.parametrize(
    ("field", "value"), [("k", 0), ("memory_gb", 0.0), ("train_rows_per_tile", -1)]
)
def test_numbers_that_are_not_positive_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"`{field}={value}` is not positive") as raised:
        ScoringConfig(**{field: value})
    assert raised.value.field == field


def test_an_unknown_normalisation_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="`normalize=l2` is unknown: give one of none, cosine"):
        ScoringConfig(normalize="l2")
