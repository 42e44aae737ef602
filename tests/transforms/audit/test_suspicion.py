"""Suspicion against refitting without each example, Bayes' rule by hand, and planted errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.audit import suspicion
from transforms.audit.suspicion import Evidence, LabelCounts, LeaveOneOut, Noise


def clusters(
    seed: int, n: int, classes: int, units: int, distance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Activations [n, units + 1] with a trailing 1, around a centre for each class, and the
    classes.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    h = rng.normal(size=(classes, units))[labels] * distance + rng.normal(size=(n, units))
    return suspicion.with_bias(h.astype(np.float32), False), labels


def even(values: np.ndarray, labels: np.ndarray) -> Evidence:
    """Evidence with the given s and without a discriminant."""
    return Evidence.of(values / suspicion.RIDGE_WEIGHT, np.zeros_like(values), labels)


def test_evidence_is_that_of_classifiers_fitted_without_the_example():
    x, labels = clusters(1, 40, 3, 5, 1.0)
    fitted = LeaveOneOut.fit(suspicion.moments(x, labels, 3))
    ridges, discriminants = fitted.evidence(x, labels)
    ridge = 1e-3 * np.trace(x.T @ x) / x.shape[1]
    h = x[:, :-1]
    centred = h - np.stack([h[labels == k].mean(0) for k in range(3)])[labels]
    within = centred.T @ centred / len(h)
    within += 1e-3 * np.trace(within) / len(within) * np.eye(len(within))
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        target = np.eye(3)[labels[rest]]
        weights = np.linalg.solve(
            x[rest].T @ x[rest] + ridge * np.eye(x.shape[1]), x[rest].T @ target
        )
        np.testing.assert_allclose(ridges[i], x[i] @ weights, rtol=1e-7, atol=1e-9)
        for k in range(3):
            off = h[i] - h[rest & (labels == k)].mean(0)
            expected = np.log((labels == k).sum()) - off @ np.linalg.solve(within, off) / 2
            assert discriminants[i, k] == pytest.approx(expected, rel=1e-7)


def test_evidence_of_checkpoints_is_their_mean():
    x, labels = clusters(2, 30, 3, 4, 1.0)
    both = [x, np.concatenate([x[:, :-1] ** 2, x[:, -1:]], axis=1)]
    fitted = [LeaveOneOut.fit(suspicion.moments(one, labels, 3)) for one in both]
    found = suspicion.all_evidence(fitted, both, labels)
    alone = [model.evidence(one, labels) for model, one in zip(fitted, both, strict=True)]
    ridge, discriminant = (sum(pair) / 2 for pair in zip(*alone, strict=True))
    np.testing.assert_allclose(found.values, 5 * ridge + 0.15 * discriminant, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.discriminants, discriminant, rtol=1e-5)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 99))
def test_moments_of_parts_add_up_to_those_of_the_whole(n, m, seed):
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(n + m, 4)), rng.integers(0, 5, n + m)
    x[:, -1] = 1
    parts = (
        suspicion.moments(x[:n], labels[:n], 5)
        + suspicion.moments(x[n:], labels[n:], 5)
        + suspicion.no_moments(4, 5)
    )
    np.testing.assert_allclose(
        parts.products, sum((np.outer(row, row) for row in x), np.zeros((4, 4))), atol=1e-9
    )
    for k in range(5):
        np.testing.assert_allclose(parts.sums[k], x[labels == k].sum(axis=0), atol=1e-9)
    assert parts.examples == n + m


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_trailing_one_is_there_once(has_bias):
    h = np.array([[2.0, 1.0]], np.float32)
    assert suspicion.with_bias(h, has_bias).tolist() == (
        [[2.0, 1.0]] if has_bias else [[2.0, 1.0, 1.0]]
    )


@pytest.mark.parametrize(
    ("x", "labels", "classes"),
    [
        (np.zeros((4, 3)), [0, 1, 1, 0], 2),  # nothing fires, not even a bias
        (np.eye(3), [0, 1, 2], 3),  # every class has one example
        (np.ones((5, 2)), [1, 1, 1, 1, 1], 3),  # one class
        (np.ones((1, 2)), [0], 2),
    ],
)
def test_degenerate_sets_are_judged_too(x, labels, classes):
    x, labels = np.concatenate([x, np.ones((len(x), 1))], axis=1), np.array(labels)
    fitted = LeaveOneOut.fit(suspicion.moments(x, labels, classes))
    evidence = suspicion.all_evidence([fitted], [x], labels)
    noise = suspicion.estimate_noise(LabelCounts.of(evidence, labels, classes).surest(classes))
    judged = suspicion.judge(evidence, labels, np.linspace(0, 1, len(labels)), noise)
    assert (
        np.isfinite(judged.suspicion).all()
        and (judged.suspicion >= 0).all()
        and (judged.suspicion <= 1).all()
    )
    assert set(judged.suggested_labels) <= set(labels)


def test_of_many_classes_the_likeliest_and_the_label_are_kept():
    rng = np.random.default_rng(3)
    values, labels = rng.normal(size=(200, 40)), rng.integers(0, 40, 200)
    kept = even(values, labels)
    assert kept.classes.shape == (200, suspicion.CANDIDATES)
    for i in range(200):
        best = set(np.argsort(-values[i])[: suspicion.CANDIDATES - 1].tolist())
        assert best <= set(kept.classes[i].tolist()) and labels[i] in kept.classes[i]
        np.testing.assert_allclose(kept.values[i], values[i, kept.classes[i]], rtol=1e-6)
        first, second = np.sort(values[i])[::-1][:2]
        assert kept.margins[i] == pytest.approx(first - second, abs=1e-6)
    np.testing.assert_array_equal(kept.first, values.argmax(axis=1))


@given(st.integers(1, 300), st.integers(2, 6), st.integers(0, 99), st.integers(1, 7))
def test_counts_do_not_depend_on_how_they_are_split_and_the_surest_are_a_tenth(
    n, classes, seed, pieces
):
    rng = np.random.default_rng(seed)
    # Whole numbers, so that no rounding moves a margin into the next bin.
    values, labels = (
        rng.integers(-20, 20, size=(n, classes)) * 5.0 + np.arange(classes),
        rng.integers(0, classes, n),
    )
    whole = LabelCounts.of(even(values, labels), labels, classes)
    parts = [
        LabelCounts.of(even(values[rows], labels[rows]), labels[rows], classes)
        for rows in np.array_split(rng.permutation(n), pieces)
        if len(rows)
    ]
    merged = LabelCounts.merge(parts)
    assert (
        merged.keys.tolist() == whole.keys.tolist()
        and merged.counts.tolist() == whole.counts.tolist()
    )
    ordered = np.sort(values, axis=1)
    margins, first = ordered[:, -1] - ordered[:, -2], values.argmax(axis=1)
    bins = np.floor(margins / (1 + margins) * 1024)
    expected = np.zeros((classes, classes), int)
    for k in range(classes):
        rows = np.flatnonzero(first == k)
        if len(rows):
            least = np.sort(bins[rows])[::-1][int(np.ceil(0.1 * len(rows))) - 1]
            for i in rows[bins[rows] >= least]:
                expected[k, labels[i]] += 1
    np.testing.assert_array_equal(whole.surest(classes), expected)


def test_noise_is_what_was_counted_where_much_was_and_the_mean_where_nothing_was():
    counted = np.array([[90_000, 10_000, 0], [0, 100_000, 0], [0, 0, 0]])
    noise = suspicion.estimate_noise(counted).matrix
    np.testing.assert_allclose(noise.sum(axis=1), 1)
    assert noise[0, 1] == pytest.approx(0.1, rel=1e-2) and noise[1, 0] < 1e-4
    rate = (10_000 + 0.5) / (200_000 + 1)
    np.testing.assert_allclose(noise[2], [rate / 2, rate / 2, 1 - rate])


def test_errors_are_even_or_go_somewhere():
    evenly = np.full((10, 10), 50) + np.diag([5000] * 10)
    one_way = np.diag([5000] * 10) + np.roll(np.diag([450] * 10), 1, axis=1)
    assert suspicion.estimate_noise(evenly).evenness > 0.95
    assert suspicion.estimate_noise(one_way).evenness < 0.2


def test_equal_errors_are_drawn_together():
    rng = np.random.default_rng(8)
    counted = rng.multinomial(200, [0.01] * 9 + [0.91], size=10)
    matrix = np.zeros((10, 10), int)
    matrix[~np.eye(10, dtype=bool)] = counted[:, :9].ravel()
    matrix[np.diag_indices(10)] = 200 - matrix.sum(axis=1)
    cells = suspicion.estimate_noise(matrix).matrix[~np.eye(10, dtype=bool)]
    raw = (matrix / 200)[~np.eye(10, dtype=bool)]
    assert np.abs(cells - 0.01).mean() < 0.5 * np.abs(raw - 0.01).mean()


@pytest.mark.parametrize("evenness", [0.0, 0.7])
def test_judgement_is_bayes_rule(evenness):
    rng = np.random.default_rng(5)
    ridge, discriminant, labels = (
        rng.normal(size=(50, 4)),
        rng.normal(size=(50, 4)),
        rng.integers(0, 4, 50),
    )
    p = rng.uniform(0.01, 0.99, 50)
    noise = Noise(rng.dirichlet(np.ones(4), size=4), evenness)
    judged = suspicion.judge(Evidence.of(ridge, discriminant, labels), labels, p, noise)
    for i in range(50):
        value = 5 * ridge[i] + (0.15 + 0.3 * evenness) * discriminant[i]
        value[labels[i]] += 2 * evenness * np.log(p[i] / (1 - p[i]))
        value /= 1 + 2 * evenness
        joint = np.exp(value) / np.exp(value).sum() * noise.matrix[:, labels[i]]
        posterior = joint / joint.sum()
        assert judged.suspicion[i] == pytest.approx(1 - posterior[labels[i]], rel=1e-5)
        assert judged.suggested_labels[i] == posterior.argmax()
        assert judged.suggested_probabilities[i] == pytest.approx(posterior.max(), rel=1e-5)


def test_an_unknown_probability_says_nothing_and_takes_nothing_away():
    labels = np.array([0, 0])
    evidence = even(np.array([[1.0, 2.0], [1.0, 2.0]]), labels)
    matrix = np.array([[0.9, 0.1], [0.1, 0.9]])
    found = suspicion.judge(evidence, labels, np.array([np.nan, 0.9]), Noise(matrix, 0.5)).suspicion
    assert (
        found[0]
        == suspicion.judge(evidence, labels, np.full(2, 0.9), Noise(matrix, 0.0)).suspicion[0]
        > found[1]
    )


def test_a_label_as_likely_as_another_is_left():
    labels = np.array([2, 1])
    judged = suspicion.judge(
        even(np.zeros((2, 3)), labels), labels, np.full(2, 0.5), Noise(np.full((3, 3), 1 / 3), 0.5)
    )
    assert judged.suggested_labels.tolist() == [2, 1]


@pytest.mark.parametrize("one_way", [False, True], ids=["uniform", "one way"])
def test_planted_errors_are_found_and_put_right(one_way):
    x, true = clusters(7, 4000, 5, 20, 1.2)
    rng = np.random.default_rng(9)
    wrong = rng.random(4000) < 0.1
    given_labels = np.where(wrong, (true + (1 if one_way else rng.integers(1, 5, 4000))) % 5, true)
    fitted = LeaveOneOut.fit(suspicion.moments(x, given_labels, 5))
    evidence = suspicion.all_evidence([fitted, fitted], [x, x], given_labels)
    noise = suspicion.estimate_noise(LabelCounts.of(evidence, given_labels, 5).surest(5))
    judged = suspicion.judge(evidence, given_labels, np.full(4000, np.nan), noise)
    suspects = judged.suspicion >= 0.5
    assert wrong[suspects].mean() > 0.95 and suspects[wrong].mean() > 0.85
    assert (judged.suspicion[wrong][:, None] > judged.suspicion[~wrong]).mean() > 0.995
    assert (judged.suggested_labels[suspects] == true[suspects]).mean() > 0.98
    assert judged.suspicion.sum() == pytest.approx(wrong.sum(), rel=0.25)
