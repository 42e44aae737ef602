"""`tracin plan`: what `tracin score` with the same flags would cost, before anything is started.

Nothing is run or written. TensorFlow is imported only to build a job for Dataflow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, TestOptions

from pipeline.flags import dataflow, parser
from pipeline.preparation.scoring import scoring_config
from pipeline.running import runner
from pipeline.terminal import report
from transforms.core.errors import InputError
from transforms.core.shapes import Shape
from transforms.influence.plan import (
    check_sets,
    predict_cost,
    process_memory_bytes,
    protocol_of,
)
from transforms.scoring.costs import Cost, FeatureFiles
from transforms.storage.feature_manifest import BYTES_PER_FILE, RECORDS_PER_FILE, FeatureManifest
from transforms.storage.read_feature_set import read_feature_set


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("plan", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("plan", argv)
    beam_options = runner.beam_options(flags)
    told = plan(args, runner.processes_per_machine(beam_options))
    print(json.dumps(dataclasses.asdict(told)) if args.json else report.plan(told))
    if beam_options.view_as(StandardOptions).runner == dataflow.RUNNER and not args.json:
        beam_options.view_as(TestOptions).dry_run = True
        print()
        runner.run_graph(
            lambda pipeline: scoring_graph(pipeline, args, beam_options), beam_options, []
        )


def scoring_graph(
    pipeline: beam.Pipeline, args: argparse.Namespace, beam_options: PipelineOptions
) -> None:
    """The graph of the planned `tracin score`, as far as its shape goes: what it carries of sets
    that are not there yet is empty.
    """
    from pipeline.commands.score import influence_rows, write_influence
    from pipeline.preparation import output_table
    from transforms.storage.read_feature_set import ReadFeatureSet

    sets = [
        pipeline
        | f"Read{name}Features"
        >> ReadFeatureSet(directory or "", f"{name.lower()}_features")  # FeatureSet
        for name, directory in (("Test", args.test_features), ("Train", args.train_features))
    ]
    train = FeatureManifest(
        "features", "", {}, (), {}, "", "class", args.outputs or 1, args.units or 1, (), (), (), {}
    )
    config, processes = scoring_config(args), runner.processes_per_machine(beam_options)
    table = output_table.wanted(args, beam_options, influence_rows(train, config))
    output = args.output or "output"
    write_influence((sets[0], sets[1]), output, config, processes, overwrite=False, table=table)


@dataclasses.dataclass(frozen=True)
class PlannedSet:
    """A feature set, there or to be: how many examples, in how many files of how many bytes in all
    (about, if it is not there yet).
    """

    examples: int
    files: int
    bytes: int

    @staticmethod
    def of(files: Sequence[FeatureFiles]) -> PlannedSet:
        """The set in these files."""
        totals = (
            (alike.number * alike.records, alike.number, alike.number * alike.bytes)
            for alike in files
        )
        return PlannedSet(*map(sum, zip((0, 0, 0), *totals, strict=True)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A scoring run that has not been started.

    Attributes:
        train, test: the feature sets.
        checkpoints, outputs, units: T, C and D (the trailing 1 of a bias counted).
        k: how many proponents and opponents of each test example.
        memory_bytes_allowed: the memory budget of one worker process.
        processes: worker processes that share a machine; where one for each processor does, workers
            are taken to be machines like this.
        processes_known: whether that is sure.
        within_memory: whether the predicted peak is within the budget.
        cost: what it costs.
    """

    train: PlannedSet
    test: PlannedSet
    checkpoints: int
    outputs: int
    units: int
    k: int
    memory_bytes_allowed: float
    processes: int
    processes_known: bool
    within_memory: bool
    cost: Cost


def plan(args: argparse.Namespace, processes_known: int | None) -> Plan:
    """What the flags ask for, and what it costs, given how many worker processes share a machine,
    if that is known.

    Raises:
        InputError: `tracin score` would refuse it.
    """
    config = scoring_config(args)
    if args.train_features is not None:
        train = read_feature_set(args.train_features, "train_features")
        test = read_feature_set(args.test_features, "test_features")
        check_sets(test, train, config)
        shape = train.shape
        test_files, train_files = (
            [FeatureFiles(1, file.count, file.size) for file in one.manifest.files if file.count]
            for one in (test, train)
        )
        counts = tuple(protocol_of(config).count(one.manifest) for one in (test, train))
    else:
        if args.learning_rates and len(args.learning_rates) != args.checkpoint_count:
            raise InputError(
                f"--learning_rates has {len(args.learning_rates)} numbers, --checkpoint_count is "
                f"{args.checkpoint_count}"
            )
        shape = Shape(args.checkpoint_count, args.outputs, args.units)
        stored_bytes = shape.stored_bytes(args.feature_dtype or "float32")
        test_files, train_files = (
            files_to_be(stored_bytes, count) for count in (args.test_count, args.train_count)
        )
        counts = (args.test_count, args.train_count)
    test_set, train_set = (
        dataclasses.replace(PlannedSet.of(files), examples=count)
        for files, count in zip((test_files, train_files), counts, strict=True)
    )
    processes = processes_known or os.cpu_count() or 1
    cost = predict_cost(config, shape, (counts[0], counts[1]), test_files, train_files, processes)
    allowed = process_memory_bytes(config, processes)
    return Plan(
        train=train_set,
        test=test_set,
        checkpoints=shape.checkpoints,
        outputs=shape.outputs,
        units=shape.units,
        k=args.k,
        memory_bytes_allowed=allowed,
        processes=processes,
        processes_known=processes_known is not None,
        within_memory=cost.memory_bytes <= allowed,
        cost=cost,
    )


def files_to_be(stored_bytes: int, examples: int) -> list[FeatureFiles]:
    """The files, about, that will hold the features of so many examples of one input file, each in
    so many bytes.
    """
    full = min(RECORDS_PER_FILE, -(-BYTES_PER_FILE // stored_bytes))
    number, rest = divmod(examples, full)
    return [
        FeatureFiles(files, records, records * stored_bytes)
        for files, records in ((number, full), (1, rest))
        if files and records
    ]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
