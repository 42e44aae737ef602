"""The k best for people with NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

from transforms.core.features import Features
from transforms.core.topk import TopK
from transforms.scoring.influence import Scoring
from transforms.scoring.search.exact_search import ExactSearch


def top_k(
    test: Features,
    train: Features,
    learning_rates: Sequence[float],
    k: int = 10,
    normalize: str = "none",
) -> TopK:
    """Finds the k strongest proponents and opponents of each test example, exactly.

    The result equals that of sorting `canonical_scores` of all pairs, bit for bit, ties by id.
    `rows` of a ranking are test examples; `ids` and `labels` are of training examples.

    Args:
        test: features of the test examples.
        train: features of the training examples, of the same T checkpoints, C outputs and D units.
        learning_rates: η of each checkpoint, T positive numbers.
        k: number of proponents (scores above 0) and of opponents (below 0) at most.
        normalize: `none`; `cosine`, scores divided by √self-influence of both examples; or
            `relatif`, by that of the training example.

    Raises:
        ValueError: the shapes do not fit each other, k or a rate is not positive, or the
            normalisation is unknown.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if not all(0 < rate < float("inf") for rate in learning_rates):
        raise ValueError(f"learning rates are {tuple(learning_rates)}, expected positive numbers")
    shapes = [
        (side.loss_grads.shape[1], side.loss_grads.shape[2], side.activations.shape[2])
        for side in (test, train)
    ]
    if shapes[0] != shapes[1] or len(learning_rates) != shapes[0][0]:
        raise ValueError(
            f"test examples have (T, C, D) = {shapes[0]}, training examples {shapes[1]}, and there "
            f"are {len(learning_rates)} learning rates: give features of the same model, and one "
            "rate for each checkpoint"
        )
    search = ExactSearch(test, Scoring(tuple(learning_rates), k, normalize))
    for _ in search.scan(train):
        pass
    return search.result()
