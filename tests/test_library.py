"""The public names of `transforms`, and the program of the documentation that composes them."""

from __future__ import annotations

import inspect
import pathlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import transforms
from tests.conftest import Outcome, Tiny, write_records
from tests.synthetic import draw, exact_scores

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = ROOT / "docs" / "examples" / "own_pipeline.py"


def test_a_program_of_thirty_lines_writes_the_bytes_of_the_command(
    tiny: Tiny, tracin: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    assert len(PROGRAM.read_text().splitlines()) <= 30
    write_records(tmp_path / "train-0", tiny.payloads()[:15])
    write_records(tmp_path / "train-1", tiny.payloads()[15:30])
    write_records(tmp_path / "test-0", tiny.payloads()[30:])
    words = [str(tmp_path), tiny.glob, str(tmp_path / "own")]
    subprocess.run([sys.executable, PROGRAM, *words], cwd=ROOT, check=True, timeout=300)
    outcome = tracin(
        "influence",
        f"--train_examples={tmp_path}/train-*",
        f"--test_examples={tmp_path}/test-*",
        f"--checkpoints={tiny.glob}",
        f"--output={tmp_path / 'command'}",
        "--id_key=id",
        "--k=3",
        "--runner=FnApiRunner",
    )
    assert outcome.status == 0, outcome.err
    own, command = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        for name in ("own", "command")
    )
    assert sorted(own) == [
        "influence-00000.jsonl",
        "influence-00000.parquet",
        "manifest.json",
        "report.html",
    ]
    assert own == command


@pytest.mark.parametrize("name", transforms.__all__)
def test_every_public_name_is_documented_by_itself(name: str) -> None:
    public = getattr(transforms, name)
    assert public.__name__ == name
    lines = (inspect.getdoc(public) or "").splitlines()
    assert lines and lines[0][0].isupper()
    # The constructor that dataclasses make up is no documentation.
    assert not lines[0].startswith(f"{name}(")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ScoreInfluences'"):
        transforms.ScoreInfluences  # noqa: B018  # looked up, which is what fails
    assert set(transforms.__all__) <= set(dir(transforms))


def test_names_are_loaded_when_they_are_used_and_scoring_loads_neither_tensorflow_nor_beam() -> (
    None
):
    code = """
import sys
import transforms
heavy = {"apache_beam", "tensorflow", "keras", "pyarrow", "numba", "numpy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
transforms.self_influence, transforms.canonical_scores, transforms.top_k, transforms.Features
assert not {"apache_beam", "tensorflow", "keras"} & set(sys.modules)
transforms.ScoreInfluence, transforms.WriteInfluence, transforms.ReadFeatureSet
assert not {"tensorflow", "keras"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_arrays_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(3)
    side = draw(rng, 4, 2, 3, 5)
    with pytest.raises(ValueError, match=r"1 learning rates, and features of 2 checkpoints"):
        transforms.self_influence(side, (0.5,))
    rows = np.arange(4)
    with pytest.raises(ValueError, match=r"3 learning rates, and features of 2 checkpoints"):
        transforms.canonical_scores(side, side, rows, rows, transforms.Scoring((1.0,) * 3, 1))
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        transforms.top_k(side, side, (0.5, 0.5), k=0)
    with pytest.raises(ValueError, match="expected positive numbers"):
        transforms.top_k(side, side, (0.5, -0.5))
    with pytest.raises(ValueError, match=r"expected \[n, T, C\] and \[n, T, D\]"):
        transforms.Features.from_arrays(side.loss_grads, side.activations[1:])


def test_arrays_are_enough_for_scores_and_the_top_k() -> None:
    rng = np.random.default_rng(3)
    drawn = draw(rng, 12, 2, 3, 5), draw(rng, 40, 2, 3, 5)
    test, train = (
        transforms.Features.from_arrays(side.loss_grads, side.activations) for side in drawn
    )
    rates = (0.5, 0.25)
    best = transforms.top_k(test, train, rates, k=4)
    expected = exact_scores(test, train, transforms.Scoring(rates, 4))
    for row in range(len(test)):
        scores = best.proponents.scores[best.proponents.rows == row]
        largest = np.sort(expected[row])[::-1][:4]
        np.testing.assert_allclose(scores, largest[largest > 0], rtol=1e-12)
    assert train.example_ids[7] == b"7"
    np.testing.assert_allclose(
        transforms.self_influence(test, rates),
        np.diag(exact_scores(test, test, transforms.Scoring(rates, 4))),
        rtol=1e-12,
    )
