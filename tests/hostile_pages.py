"""Reports whose ids, names and texts try to be more than text."""

from __future__ import annotations

import numpy as np

# Names of classes that would be more than text on a careless page.
NAMES = ["<b>bold</b>", "\"quoted' & <img src=x onerror=window.hacked=1>", "{{ 7 * 7 }}"]


def hostile_page() -> bytes:
    """The report of an audit whose ids, names and texts try to be more than text."""
    from transforms.audit import report
    from transforms.reports.pictures import encode_picture
    from transforms.reports.previews import Preview

    ids = [
        "<script>window.hacked=1</script>",
        '"><img src=x onerror="window.hacked=1">',
        "\u202eturned",
        "a" * 300,
        "plain-0",
        "plain-1",
    ]
    shown = [
        {
            "example_id": one,
            "source": "file",
            "offset": i,
            "label": i % 3,
            "suggested_label": (i + 1) % 3,
            "suggested_probability": 0.9 - i / 10,
            "suspicion": 1 - i / 20,
            "self_influence": float((7 * i) % 6),
            "relative_self_influence": float((5 * i) % 6),
        }
        for i, one in enumerate(ids)
    ]
    rng = np.random.default_rng(0)
    previews = {
        ("file", i): Preview(
            encode_picture(rng.random((8, 8), np.float32)),
            {"text</p>": "<script>window.hacked=1</script>"},
        )
        for i in range(len(ids))
    }
    classes = [
        {
            "label": k,
            "examples": 10 + (7 * k) % 5,
            "accuracy": 0.5,
            "suspects": 2,
            "expected_wrong_labels": 2.5,
            "mean_self_influence": 1.0,
            "self_influence_share": 1 / 3,
            "suggested": [{"label": (k + 1) % 3, "suspects": 2}],
        }
        for k in range(3)
    ]
    summary = {
        "examples": 40,
        "accuracy": 0.75,
        "suspects": 6,
        "listed_suspects": 6,
        "min_suspicion": 0.5,
        "expected_wrong_labels": 7.5,
        "confusions": [
            {"label": k, "suggested_label": (k + 1) % 3, "suspects": 2} for k in range(3)
        ],
        "classes": classes,
        "suspicion_histogram": [
            {"from": i / 20, "to": (i + 1) / 20, "examples": i} for i in range(20)
        ],
        "self_influence_histogram": [
            {"from": 2.0**i, "to": 2.0 ** (i + 1), "examples": 10} for i in range(4)
        ],
        "crossed": [
            {
                "threshold": "max_shift",
                "limit": 0.1,
                "found": 0.25,
                "what": "the largest shift of a class's self-influence",
            }
        ],
        "drift": {
            "previous": {"directory": "gs://bucket/<i>before</i>"},
            "examples": {"new": 1, "gone": 0, "changed": 0, "relabelled": 0},
            "suspects": {"appeared": 1, "stayed": 5, "fixed": 0, "gone": 0},
            "classes": [],
        },
        "test": {
            "helpful": [
                {"example_id": "<s>h</s>", "label": 0, "suspicion": 0.1, "test_influence": 0.5}
            ],
            "harmful": [
                {
                    "example_id": "</td><script>window.hacked=1</script>",
                    "label": 1,
                    "suspicion": 0.9,
                    "test_influence": -0.5,
                }
            ],
            "slices": [
                {
                    "key": "<i>key</i>",
                    "value": "</td><script>window.hacked=1</script>",
                    "examples": 5,
                    "mean_influence": 0.25,
                    "helpful": [{"example_id": "<s>h</s>", "label": 0, "influence": 0.5}],
                    "harmful": [],
                }
            ],
            "slice_keys_left_out": ["<u>serial</u>"],
            "between_labels": [{"label": k, "on": [0.25, None, -0.125]} for k in range(3)],
        },
        "duplicates": {
            "min_similarity": 0.99,
            "groups": 3,
            "examples": 7,
            "conflicting_groups": 2,
            "conflicting_examples": 5,
            "listed_examples": 7,
            "pairs_left_out": 0,
        },
        "settings": {"features": "<u>fingerprint</u>"},
    }
    near = [
        {**shown[j], "example": i, "similarity": 0.9}
        for i in range(len(ids))
        for j in range(len(ids))
        if j != i and j < 3
    ]
    groups = [
        [{**shown[i], "similarity": 1.0} for i in (0, 1)],
        [{**shown[i], "similarity": 0.995} for i in (2, 3, 4)],
    ]
    return report.render(summary, shown, previews, NAMES, near, groups)


def hostile_influence_page() -> bytes:
    """The report of influence whose ids, names and texts try to be more than text."""
    from transforms.influence import report_page
    from transforms.influence.traces import Trace
    from transforms.reports.pictures import encode_picture
    from transforms.reports.previews import Preview

    ids = [
        "<script>window.hacked=1</script>",
        '"><img src=x onerror="window.hacked=1">',
        "\u202eturned",
        "a" * 300,
        "plain-0",
        "plain-1",
    ]
    rng = np.random.default_rng(0)
    seen = {
        one: Preview(
            encode_picture(rng.random((8, 8), np.float32)),
            {"text</p>": "<script>window.hacked=1</script>"},
        )
        for one in ids
    }
    traces = [
        Trace(
            {
                "test_id": one,
                "test_label": i % 3,
                "test_prediction": (i + i // 3) % 3,
                "test_probability": 0.9,
                "self_influence": float((5 * i) % 7),
                "proponents": [
                    {"train_id": other, "train_label": i % 3, "score": 3.5 - j}
                    for j, other in enumerate(ids[:3])
                ],
                "opponents": [
                    {"train_id": other, "train_label": (i + 1) % 3, "score": j - 1234.5}
                    for j, other in enumerate(ids[3:])
                ][: i % 4],
            },
            i / 10,
        )
        for i, one in enumerate(ids)
    ]
    settings = {"k": 3, "normalize": "none", "learning_rates": [0.1]}
    return report_page.render(
        traces, 1000, settings, (seen, seen), NAMES, ["Test set: <u>note</u>."]
    )
