"""An influence result as a page to read: the worst-predicted test examples beside what pulled their
predictions both ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transforms.influence.traces import Trace
from transforms.reports import pages
from transforms.reports.previews import NO_TENSORFLOW, Preview

# Training examples that are told to be opponents of several of the shown.
_REPEATED = 10


_NO_TENSORFLOW_NOTE = (
    "There are no pictures: to read examples takes TensorFlow, which is not installed where the "
    "report was made."
)


def render(
    traces: Sequence[Trace],
    rows: int,
    settings: Mapping[str, Any],
    previews: tuple[Mapping[str, Preview], Mapping[str, Preview]],
    class_names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> bytes:
    """The page of an influence result, in UTF-8.

    Args:
        traces: what is shown, the worst predicted first.
        rows: how many test examples the result is of.
        settings: of the result, for a person to read.
        previews: of test and of training examples, by id; those that are missing are left out.
        class_names: of all classes, or None for their numbers.
        notes: what is to be told of the result, such as why there are no pictures.
    """

    def preview(example: tuple[bool, str]) -> Preview:
        trains, example_id = example
        return previews[trains].get(example_id, Preview())

    cards = [
        {
            **trace.row,
            "label_probability": None
            if np.isnan(trace.label_probability)
            else trace.label_probability,
            "wrong": trace.row.get("test_label") != trace.row.get("test_prediction"),
        }
        for trace in traces
    ]
    # Of an example with many positions, their number.
    summed = bool(settings.get("sum_positions"))
    told = "train_positions" if summed else "train_label"
    opponents = Counter(
        (one["train_id"], str(one[told])) for card in cards for one in card["opponents"]
    )
    labels = {one["train_id"]: one[told] for card in cards for one in card["opponents"]}
    repeated = sorted(
        (pair for pair in opponents.items() if pair[1] > 1), key=lambda pair: (-pair[1], pair[0])
    )[:_REPEATED]
    problems = [
        problem for example in _examples(cards) if (problem := preview(example).problem) is not None
    ]
    if NO_TENSORFLOW in problems:
        notes = [*notes, _NO_TENSORFLOW_NOTE]
        problems = [problem for problem in problems if problem != NO_TENSORFLOW]
    return pages.render(
        "influence_page.html.j2",
        preview,
        class_names,
        cards=cards,
        summed=summed,
        rows=rows,
        settings=settings,
        notes=notes,
        problems=problems,
        repeated=[(example_id, labels[example_id], count) for (example_id, _), count in repeated],
        labels=_choices(card.get("test_label") for card in cards),
        predictions=_choices(card.get("test_prediction") for card in cards),
    )


def _examples(cards: Sequence[Mapping[str, Any]]) -> list[tuple[bool, str]]:
    """Which examples are shown, each once: whether it is a training example, and its id."""
    trains = [
        one["train_id"]
        for card in cards
        for name in ("proponents", "opponents")
        for one in card[name]
    ]
    return list(
        dict.fromkeys(
            [*((False, card["test_id"]) for card in cards), *((True, one) for one in trains)]
        )
    )


def _choices(labels: Any) -> list[Any]:
    """Class indices to filter by; none where labels are lists or numbers of a regression."""
    known = list(labels)
    return sorted(set(known)) if known and all(isinstance(one, int) for one in known) else []
