"""The parts of the audit: groups of files, their moments, and the directions of a set."""

from __future__ import annotations

import numpy as np
import pytest

from tests.transforms.audit.sets import clusters, with_manifest, written
from transforms.audit import suspicion
from transforms.audit.config import AuditConfig, AuditTuning, plan_audit
from transforms.audit.judge import directions_of, fit, plan_groups, sum_moments, weigh
from transforms.audit.rows import PendingExamples, read_pending
from transforms.audit.suspicion import LabelCounts, LeaveOneOut
from transforms.core.errors import InputError
from transforms.duplicates.signatures import Signatures
from transforms.storage.feature_set import FeatureSet

ROWS = [20, 30, 1, 9]


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> FeatureSet:
    return written(tmp_path_factory.mktemp("train"), ROWS)


def whole_fit(train: FeatureSet) -> list[LeaveOneOut]:
    """The classifiers of each checkpoint, fitted to all examples at once."""
    drawn = clusters(sum(ROWS))
    return [
        LeaveOneOut.fit(
            suspicion.moments(drawn.activations[:, t].astype(np.float64), drawn.labels[:, 0], 3)
        )
        for t in range(2)
    ]


@pytest.mark.parametrize(
    ("tuning", "count"),
    [
        (AuditTuning(), 4),
        (AuditTuning(groups=3), 3),
        # Sums of 2 checkpoints with 7 · (7 + 3) numbers, where a bias may still be added.
        (AuditTuning(moment_bytes=2 * 8 * 7 * 10 * 2), 2),
        (AuditTuning(moment_bytes=0), 1),
    ],
)
def test_groups_are_as_many_as_fit_and_hold_each_file_once(train, tuning, count):
    groups = list(plan_groups(train, tuning))
    assert [number for number, _, _ in groups] == list(range(count))
    files = [file for _, start, stop in groups for file in range(start, stop)]
    assert files == list(range(len(ROWS)))
    assert all(start < stop for _, start, stop in groups)


def test_an_empty_set_is_refused(train):
    with pytest.raises(InputError, match="nothing to audit"):
        list(plan_groups(with_manifest(train, files=()), AuditTuning()))


@pytest.mark.parametrize("groups", [1, 3])
def test_classifiers_of_groups_are_those_of_the_whole(train, groups):
    by_checkpoint = {0: [], 1: []}
    for group in plan_groups(train, AuditTuning(groups=groups)):
        for t, part in sum_moments(group, train):
            by_checkpoint[t].append(part)
    expected = whole_fit(train)
    for t, parts in by_checkpoint.items():
        found = [fit((t, order)) for order in (parts, parts[::-1])]
        # In whatever order groups come, to the last bit.
        assert found[0][1].weights.tobytes() == found[1][1].weights.tobytes()
        np.testing.assert_allclose(found[0][1].weights, expected[t].weights, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found[0][1].means, expected[t].means, rtol=1e-9)


def test_directions_are_about_the_mean_of_all_activations(train):
    drawn = clusters(sum(ROWS))
    np.testing.assert_allclose(
        directions_of(whole_fit(train)).centres,
        drawn.activations[:, :, :-1].astype(np.float64).mean(axis=0),
        rtol=1e-9,
        atol=1e-12,
    )


def test_a_file_is_weighed_with_classifiers_of_the_whole_set(train, tmp_path):
    plan = plan_audit(AuditConfig(learning_rates=(0.5, 0.25)), str(tmp_path), train)
    models = whole_fit(train)
    fitted = [(1, models[1]), (0, models[0])]
    signatures, counts, pending = weigh(1, train, plan, str(tmp_path), fitted, [])
    drawn = clusters(sum(ROWS)).take(slice(20, 50))
    labels = drawn.labels[:, 0]
    assert isinstance(signatures.value, Signatures) and signatures.tag == "signatures"
    assert signatures.value.records.tolist() == [(1 << 32) + i for i in range(30)]
    assert isinstance(counts.value, LabelCounts) and counts.value.counts.sum() == 30
    assert isinstance(pending, PendingExamples) and pending.file == 1
    examples, evidence = read_pending(str(tmp_path), pending)
    assert examples.example_ids.tolist() == drawn.example_ids.tolist()
    assert examples.labels.tolist() == labels.tolist() and examples.test_influence is None
    # ‖δ h‖² of the whole outer product, by checkpoint.
    expected = sum(
        rate * np.square(np.einsum("nc,nd->ncd", drawn.loss_grads[:, t], drawn.activations[:, t]))
        for t, rate in enumerate((0.5, 0.25))
    ).sum(axis=(1, 2))
    np.testing.assert_allclose(examples.self_influence, expected, rtol=1e-5)
    activations = [drawn.activations[:, t].astype(np.float64) for t in range(2)]
    whole = suspicion.all_evidence(models, activations, labels)
    assert evidence.values.tobytes() == whole.values.tobytes()
