"""Groups of examples that pairs join."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Examples that are copies of each other, group by group: those with conflicting labels first,
    then by the first member.

    Attributes:
        places: [m] int64.
        numbers: [m] int64, ascending from 0, the group of each.
        similarities: [m] float64, to the member it is most alike; 1 of equal inputs.
        conflicting: [m] bool, whether the members of its group have several labels.
    """

    places: np.ndarray
    numbers: np.ndarray
    similarities: np.ndarray
    conflicting: np.ndarray


def group(places: np.ndarray, labels: np.ndarray, similarity: np.ndarray) -> Groups:
    """Joins what is connected by pairs: places and labels [p, 2], similarity [p]."""
    members, index = np.unique(places, return_inverse=True)
    ends = index.reshape(-1, 2)
    roots = list(range(len(members)))

    def root(i: int) -> int:
        while roots[i] != i:
            roots[i] = roots[roots[i]]
            i = roots[i]
        return i

    for i, j in ends.tolist():
        a, b = root(i), root(j)
        # The first member stands for its group.
        roots[max(a, b)] = min(a, b)
    heads = np.array([root(i) for i in range(len(members))], np.int64)
    own = np.full(len(members), -np.inf)
    np.maximum.at(own, ends, similarity[:, None])
    of_label = np.zeros(len(members), np.int64)
    of_label[ends] = labels
    mixed = np.zeros(len(members), bool)
    mixed[heads[of_label != of_label[heads]]] = True
    conflicting = mixed[heads]
    order = np.lexsort((members, heads, ~conflicting))
    _, numbers = np.unique(
        np.stack([~conflicting[order], heads[order]], axis=1), axis=0, return_inverse=True
    )
    return Groups(members[order], numbers.reshape(-1), own[order], conflicting[order])
