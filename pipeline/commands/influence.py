"""`tracin influence`: both stages in one graph, from examples and checkpoints to each test
example's proponents and opponents.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence

import apache_beam as beam

from pipeline.commands.features import extraction
from pipeline.commands.score import influence_rows, pairs_of, write_influence
from pipeline.flags import parser
from pipeline.preparation import configs, output_table
from pipeline.preparation.scoring import scoring_config
from pipeline.running import progress, runner
from pipeline.terminal import report
from transforms.core.shapes import Shape
from transforms.extraction.load_model import load_model
from transforms.influence.plan import check_memory, influence_draft
from transforms.reports.class_names import read_class_names
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.manifests import Manifest
from transforms.storage.tables.bigquery_client import check_credentials


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("influence", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("influence", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    if args.output_table:
        check_credentials()
    model = load_model(configs.model_config(args), rates_needed=True)
    wanted = {
        name: configs.extraction(
            args,
            model,
            filesystems.join(args.output, f"{name}_features"),
            f"{name}_examples",
            labels,
            args.base and filesystems.join(args.base, f"{name}_features"),
        )
        for name, labels in (("test", args.test_labels), ("train", args.train_labels))
    }
    rates = model.usable_rates()
    # Named, because a feature set that is already there may have been written with other rates in
    # its manifest.
    config = dataclasses.replace(scoring_config(args), learning_rates=rates)
    processes = runner.processes_per_machine(beam_options)
    test, train = (wanted[name].draft for name in ("test", "train"))
    class_names = read_class_names(args.class_names, train)
    draft = influence_draft(test, train, config, class_names)
    check_memory(config, Shape(len(train.checkpoints), train.outputs, train.units), processes)
    table = output_table.wanted(args, beam_options, influence_rows(train, config))
    if manifests.is_complete(args.output, draft, args.overwrite):
        output_table.finish(args.output, table, beam_options)
        return
    output_table.check(table, beam_options)
    filesystems.check_writable(args.output)
    print(report.checkpoints(model))
    for name, one in wanted.items():
        if one.complete:
            print(f"{name}_features: already complete, used as they are")

    def build(pipeline: beam.Pipeline) -> None:
        sets = (
            pipeline | "ExtractTestFeatures" >> wanted["test"],
            pipeline | "ExtractTrainFeatures" >> wanted["train"],
        )
        names = tuple(class_names) if class_names else None
        write_influence(sets, args.output, config, processes, args.overwrite, names, table)

    missing = [one for one in wanted.values() if not one.complete]
    stages = (extraction(missing) if missing else []) + [progress.SCORING]
    counts = runner.run_graph(build, beam_options, stages)
    if counts is None:
        print("the graph is built; nothing has run")
        return
    written = {name: runner.read_back(one.output, FeatureManifest) for name, one in wanted.items()}
    for name, one in wanted.items():
        print(report.features(one.output, written[name], f"{name}_features"))
    print(report.influence(args.output, runner.read_back(args.output, Manifest)))
    output_table.tell(table)
    pairs = pairs_of(written["test"], written["train"], config)
    print(report.skipped(counts, pairs))
    read = sum(
        written[name].counts[what]
        for name, one in wanted.items()
        if not one.complete
        for what in ("examples", "rejected")
    )
    print(report.done(started, read, counts, scored=pairs))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
