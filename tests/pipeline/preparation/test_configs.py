"""Flags become the fields of configurations of the same names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.flags import parser
from pipeline.preparation.configs import from_flags
from transforms.audit.config import AuditConfig
from transforms.examples.config import ExampleConfig
from transforms.extraction.config import ExtractionConfig
from transforms.influence.config import ScoringConfig
from transforms.models.config import ModelConfig
from transforms.vectors.config import ProjectionConfig, SearchConfig

OUTPUT = "--output=o"
FEATURES = ("features", ["--examples=e", "--checkpoints=c", OUTPUT])
SCORE = ("score", ["--train_features=a", "--test_features=b", OUTPUT])
AUDIT = ("audit", ["--features=a", OUTPUT])
EXPORT = ("export", ["--features=a", OUTPUT])
SEARCH = ("search", ["--train_features=a", "--test_features=b", "--index=i", OUTPUT])


@pytest.mark.parametrize(
    ("kind", "command", "without_flag"),
    [
        (ModelConfig, FEATURES, set()),
        (ExampleConfig, FEATURES, set()),
        (ExtractionConfig, FEATURES, set()),
        (ScoringConfig, SCORE, set()),
        (AuditConfig, AUDIT, set()),
        (ProjectionConfig, EXPORT, set()),
        (SearchConfig, SEARCH, set()),
    ],
)
def test_every_field_has_a_flag_with_the_same_default(
    kind: type[Any], command: tuple[str, list[str]], without_flag: set[str]
) -> None:
    args, _ = parser.parse(*command)
    config = from_flags(kind, args)
    for field in dataclasses.fields(kind):
        if field.name in without_flag:
            continue
        assert hasattr(args, field.name), field.name
        assert getattr(config, field.name) == getattr(args, field.name)
        if field.default is not dataclasses.MISSING:
            assert field.default == getattr(args, field.name), field.name


def test_values_are_taken_over() -> None:
    args, _ = parser.parse(SCORE[0], [*SCORE[1], "--k=3", "--learning_rates=1,2"])
    config = from_flags(ScoringConfig, args)
    assert (config.k, config.learning_rates, config.normalize) == (3, (1.0, 2.0), "none")


def test_a_field_without_a_flag_keeps_its_default() -> None:
    # `tracin influence` has --train_labels and --test_labels instead.
    args, _ = parser.parse(
        "influence", ["--train_examples=a", "--test_examples=b", "--checkpoints=c", OUTPUT]
    )
    assert from_flags(ExtractionConfig, args).labels == ExtractionConfig().labels
