"""The page of an influence result: the worst-predicted test examples beside their strongest
candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from transforms.influence.traces import Trace
from transforms.reports import pages
from transforms.reports.previews import NO_TENSORFLOW, Preview

# Training examples that are listed as opponents of several of the shown test examples, at most.
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
    """Renders the page of an influence result, in UTF-8.

    Args:
        traces: the shown test examples, the worst predicted first.
        rows: number of test examples of the result.
        settings: of the result, for a person to read.
        previews: of test and of training examples, by id; missing ones are left out.
        class_names: names of all classes, or None for their numbers.
        notes: sentences about the result.
    """

    def preview(example: tuple[bool, str]) -> Preview:
        trains, example_id = example
        return previews[trains].get(example_id, Preview())

    cards = [_card(trace) for trace in traces]
    summed = bool(settings.get("sum_positions"))
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
        repeated=_repeated_opponents(cards, "train_positions" if summed else "train_label"),
        labels=_choices(card.get("test_label") for card in cards),
        predictions=_choices(card.get("test_prediction") for card in cards),
    )


def _card(trace: Trace) -> dict[str, Any]:
    """Returns the fields of a test example's card."""
    known = not np.isnan(trace.label_probability)
    return {
        **trace.row,
        "label_probability": trace.label_probability if known else None,
        "wrong": trace.row.get("test_label") != trace.row.get("test_prediction"),
    }


def _repeated_opponents(
    cards: Sequence[Mapping[str, Any]], field: str
) -> list[tuple[str, Any, int]]:
    """Returns the training examples that are opponents of several test examples, the most often
    first: id, a field of the candidate, and how often.
    """
    opponents = [opponent for card in cards for opponent in card["opponents"]]
    counts = Counter((opponent["train_id"], str(opponent[field])) for opponent in opponents)
    fields = {opponent["train_id"]: opponent[field] for opponent in opponents}
    several = [(key, count) for key, count in counts.items() if count > 1]
    ordered = sorted(several, key=lambda pair: (-pair[1], pair[0]))[:_REPEATED]
    return [(example_id, fields[example_id], count) for (example_id, _), count in ordered]


def _examples(cards: Sequence[Mapping[str, Any]]) -> list[tuple[bool, str]]:
    """Returns the shown examples, each once: whether it is a training example, and its id."""
    tests = [(False, card["test_id"]) for card in cards]
    trains = [
        (True, candidate["train_id"])
        for card in cards
        for name in ("proponents", "opponents")
        for candidate in card[name]
    ]
    return list(dict.fromkeys([*tests, *trains]))


def _choices(labels: Iterable[Any]) -> list[int]:
    """Returns the class indices to filter by; none where labels are lists or numbers of a
    regression.
    """
    known = list(labels)
    return sorted(set(known)) if all(isinstance(label, int) for label in known) else []
