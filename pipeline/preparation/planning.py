"""The plan of a scoring run, from the flags: of feature sets that exist, or of numbers."""

from __future__ import annotations

import argparse
import dataclasses
import os

from pipeline.preparation.configs import from_flags
from pipeline.terminal.planned import Plan, PlannedSet
from transforms.core.errors import InputError
from transforms.core.shapes import Shape
from transforms.influence.config import ScoringConfig
from transforms.influence.plan import (
    check_sets,
    predict_cost,
    process_memory_bytes,
    protocol_of,
)
from transforms.scoring.costs import FeatureFiles
from transforms.storage.feature_set import FeatureSet
from transforms.storage.feature_set_checks import BYTES_PER_FILE, RECORDS_PER_FILE
from transforms.storage.read_feature_set import read_feature_set


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What a run would score.

    Attributes:
        shape: T, C and D.
        test_files, train_files: the files of both sets.
        counts: the numbers of test and of training examples that are scored.
    """

    shape: Shape
    test_files: list[FeatureFiles]
    train_files: list[FeatureFiles]
    counts: tuple[int, int]


def plan(args: argparse.Namespace, processes_known: int | None) -> Plan:
    """Returns the plan of the run that the flags ask for.

    Args:
        args: the flags of `tracin plan`.
        processes_known: worker processes that share a machine; None if that is not known.

    Raises:
        InputError: `tracin score` would refuse it.
    """
    config = from_flags(ScoringConfig, args)
    inputs = _numbers(args) if args.train_features is None else _sets(args, config)
    test, train = (
        dataclasses.replace(PlannedSet.of(files), examples=count)
        for files, count in zip((inputs.test_files, inputs.train_files), inputs.counts, strict=True)
    )
    processes = processes_known or os.cpu_count() or 1
    cost = predict_cost(
        config, inputs.shape, inputs.counts, inputs.test_files, inputs.train_files, processes
    )
    allowed = process_memory_bytes(config, processes)
    return Plan(
        train=train,
        test=test,
        checkpoints=inputs.shape.checkpoints,
        outputs=inputs.shape.outputs,
        units=inputs.shape.units,
        k=args.k,
        memory_bytes_allowed=allowed,
        processes=processes,
        processes_known=processes_known is not None,
        within_memory=cost.memory_bytes <= allowed,
        cost=cost,
    )


def _sets(args: argparse.Namespace, config: ScoringConfig) -> _Inputs:
    train = read_feature_set(args.train_features, "train_features")
    test = read_feature_set(args.test_features, "test_features")
    check_sets(test, train, config)
    protocol = protocol_of(config)
    counts = (protocol.count(test.manifest), protocol.count(train.manifest))
    return _Inputs(train.shape, _files(test), _files(train), counts)


def _files(feature_set: FeatureSet) -> list[FeatureFiles]:
    return [
        FeatureFiles(1, file.count, file.size) for file in feature_set.manifest.files if file.count
    ]


def _numbers(args: argparse.Namespace) -> _Inputs:
    if args.learning_rates and len(args.learning_rates) != args.checkpoint_count:
        raise InputError(
            f"`learning_rates` has {len(args.learning_rates)} numbers, `checkpoint_count` is "
            f"{args.checkpoint_count}"
        )
    shape = Shape(args.checkpoint_count, args.outputs, args.units)
    stored_bytes = shape.stored_bytes(args.feature_dtype or "float32")
    return _Inputs(
        shape,
        planned_files(stored_bytes, args.test_count),
        planned_files(stored_bytes, args.train_count),
        (args.test_count, args.train_count),
    )


def planned_files(stored_bytes: int, examples: int) -> list[FeatureFiles]:
    """Estimates the files that will hold the features of one input file.

    Args:
        stored_bytes: size of a stored record.
        examples: number of records.
    """
    full = min(RECORDS_PER_FILE, -(-BYTES_PER_FILE // stored_bytes))
    number, rest = divmod(examples, full)
    return [
        FeatureFiles(files, records, records * stored_bytes)
        for files, records in ((number, full), (1, rest))
        if files and records
    ]
