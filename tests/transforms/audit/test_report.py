"""The values that the report's page is given."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.hostile_pages import NAMES, hostile_page
from transforms.audit import report
from transforms.reports.previews import Preview


def summary_of(classes: int) -> dict:
    return {
        "examples": 10 * classes,
        "accuracy": 0.5,
        "suspects": classes,
        "min_suspicion": 0.5,
        "expected_wrong_labels": 1.0,
        "confusions": [],
        "classes": [
            {
                "label": k,
                "examples": 10,
                "accuracy": 0.5,
                "suspects": 1,
                "expected_wrong_labels": 1.0,
                "self_influence_share": 0.5,
                "suggested": [{"label": (k + 1) % classes, "suspects": k + 1}],
            }
            for k in range(classes)
        ],
        "suspicion_histogram": [
            {"from": 0.0, "to": 0.5, "examples": 0},
            {"from": 0.5, "to": 1.0, "examples": 99},
        ],
        "self_influence_histogram": [],
        "duplicates": {"conflicting_groups": 0, "min_similarity": 0.99},
        "crossed": [],
        "settings": {"k": 3},
    }


def suspect(i: int) -> dict:
    return {
        "example_id": f"ex-{i}",
        "source": "file",
        "offset": i,
        "label": 0,
        "suggested_label": i % 2,
        "suggested_probability": 0.75,
        "suspicion": 0.9,
        "self_influence": 1.0,
        "relative_self_influence": 2.0,
        "similarity": 0.875,
    }


@pytest.mark.parametrize(("classes", "shown"), [(3, True), (30, True), (31, False)])
def test_pairs_of_few_classes_are_a_matrix(classes, shown):
    page = report.render(summary_of(classes), [], {}).decode()
    assert ('class="matrix"' in page) is shown
    if shown:
        cells = re.findall(r'--share: ([\d.]+)">(\d*)</td>', page)
        assert len(cells) == classes**2
        counts = np.array([int(count or 0) for _, count in cells]).reshape(classes, classes)
        for k in range(classes):
            assert counts[k, (k + 1) % classes] == k + 1 and counts[k].sum() == k + 1
        shares = [float(share) for share, _ in cells]
        assert shares == pytest.approx((0.6 * counts / counts.max()).ravel().tolist(), abs=1e-3)


def test_bars_are_as_high_as_the_logarithm_of_their_counts():
    page = report.render(summary_of(3), [], {}).decode()
    heights = re.findall(r'<rect .*? height="([\d.]+)"><title>(.*?)</title>', page)
    assert heights == [
        ("0.00", "suspicion from 0 to 0.5: 0"),
        ("100.00", "suspicion from 0.5 to 1: 99"),
    ]


def test_each_suspect_stands_beside_its_own_neighbours():
    shown = [suspect(0), suspect(1)]
    neighbours = [{**suspect(7), "example": 1}, {**suspect(8), "example": 1}]
    page = report.render(summary_of(3), shown, {}, neighbours=neighbours).decode()
    first, second = re.findall(r'<li data-id="ex-.*?(?=<li data-id|</section>)', page, re.DOTALL)
    assert 'class="near"' not in first
    assert [name in second for name in ("ex-7", "ex-8", "ex-0")] == [True, True, False]
    assert "may be of another class" in first and "looks like" in second


def test_examples_that_cannot_be_shown_are_counted():
    previews = {("file", 1): Preview(problem="is <gone>"), ("file", 0): Preview(b"\x89PNG")}
    page = report.render(
        summary_of(3), [suspect(0), suspect(1)], previews, note="No <colour>."
    ).decode()
    assert "1 of these examples cannot be shown; the first is &lt;gone&gt;." in page
    assert page.count("<img ") == 1 and "No &lt;colour&gt;." in page


def test_a_page_without_suspects_says_so():
    assert "There is no suspect." in report.render(summary_of(3), [], {}).decode()


def test_hostile_names_are_escaped():
    page = hostile_page().decode()
    assert page.count("<script>") == 1 and NAMES[0] not in page
