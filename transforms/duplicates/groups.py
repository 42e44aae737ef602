"""Groups of duplicates: the examples that pairs connect."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Duplicates, group by group: groups with conflicting labels first, then by first member.

    Attributes:
        records: [m] int64, record numbers; see `signatures`.
        numbers: [m] int64, ascending from 0, the group of each.
        similarities: [m] float64, to the most similar member that it is paired with; 1 for equal
            inputs.
        conflicting: [m] bool, whether the members of the group have several labels.
    """

    records: np.ndarray
    numbers: np.ndarray
    similarities: np.ndarray
    conflicting: np.ndarray


def group(records: np.ndarray, labels: np.ndarray, similarity: np.ndarray) -> Groups:
    """Groups the examples that pairs connect: record numbers and labels [p, 2], similarity [p]."""
    members, indices = np.unique(records, return_inverse=True)
    ends = indices.reshape(-1, 2)
    heads = _heads(ends, len(members))
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


def _heads(ends: np.ndarray, count: int) -> np.ndarray:
    """The first member of each member's group [count], by union-find over pairs of indices."""
    parents = list(range(count))

    def head(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    for i, j in ends.tolist():
        a, b = head(i), head(j)
        parents[max(a, b)] = min(a, b)
    return np.array([head(i) for i in range(count)], np.int64)
