"""The k best of arrays against a sort of scores that nothing of the code under test made."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic import assert_same, draw, exact_scores, full_sort
from transforms.scoring.influence import NORMALIZATIONS, Scoring
from transforms.scoring.search.for_arrays import top_k

RATES = (0.1, 0.02)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("k", [1, 7, 100])
def test_the_k_best_are_those_of_brute_force(k, normalize):
    rng = np.random.default_rng(k)
    test, train = draw(rng, 9, 2, 3, 6, "test-"), draw(rng, 80, 2, 3, 6, "train-")
    best = top_k(test, train, RATES, k, normalize)
    scoring = Scoring(RATES, k, normalize)
    assert_same(best, full_sort(test, train, scoring))
    scores = exact_scores(test, train, scoring)
    for sign, ranking in ((1, best.proponents), (-1, best.opponents)):
        for i in range(len(test)):
            own = ranking.rows == i
            order = np.argsort(-sign * scores[i], kind="stable")
            order = order[sign * scores[i][order] > 0][:k]
            assert ranking.ids[own].tolist() == train.example_ids[order].tolist()
            assert ranking.labels[own].tolist() == train.labels[order].tolist()
            np.testing.assert_allclose(ranking.scores[own], scores[i][order], rtol=1e-9)


def test_features_of_different_models_are_refused():
    rng = np.random.default_rng(0)
    test, train = draw(rng, 3, 2, 3, 6), draw(rng, 4, 2, 3, 7)
    with pytest.raises(ValueError, match=r"\(2, 3, 6\), training examples \(2, 3, 7\)"):
        top_k(test, train, RATES)
    with pytest.raises(ValueError, match="there are 1 learning rates"):
        top_k(test, test, (0.1,))
    with pytest.raises(ValueError, match="normalize"):
        top_k(test, test, RATES, normalize="l2")
