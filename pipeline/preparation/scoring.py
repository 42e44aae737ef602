"""Stage 2 of a command, made from the flags."""

from __future__ import annotations

import apache_beam as beam

from transforms.influence.config import InfluenceReportConfig, ScoringConfig
from transforms.influence.plan import protocol_of
from transforms.influence.score import ScoreInfluence
from transforms.influence.write import WriteInfluence
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest
from transforms.storage.read_feature_set import ReadFeatureSet
from transforms.storage.tables.bigquery_rows import TableRows
from transforms.storage.tables.bigquery_write import WriteTable


def pairs_of(test: FeatureManifest, train: FeatureManifest, config: ScoringConfig) -> int:
    """Returns the number of pairs that are scored."""
    protocol = protocol_of(config)
    return protocol.count(test) * protocol.count(train)


def influence_rows(train: FeatureManifest, config: ScoringConfig) -> TableRows:
    """Returns which files of a result are rows of a table, and their schema."""
    return TableRows("influence-", protocol_of(config).schema(train.task, train.outputs))


def read_sets(
    pipeline: beam.Pipeline, test: FeatureSet, train: FeatureSet
) -> tuple[beam.PCollection, beam.PCollection]:
    """Adds the reading of both feature sets of the flags to a graph: FeatureSet, FeatureSet."""
    test_set, train_set = (
        pipeline
        | f"Read{name}Features"
        >> ReadFeatureSet(
            feature_set.directory, f"{name.lower()}_features", feature_set.manifest.fingerprint
        )  # FeatureSet
        for name, feature_set in (("Test", test), ("Train", train))
    )
    return test_set, train_set


def write_influence(
    sets: tuple[beam.PCollection, beam.PCollection],
    output: str,
    config: ScoringConfig,
    processes: int | None,
    overwrite: bool,
    class_names: tuple[str, ...] | None = None,
    table: WriteTable | None = None,
) -> beam.PCollection:
    """Adds all of stage 2 to a graph: (test, train) FeatureSet → Manifest of the result."""
    blocks = sets | "ScoreInfluence" >> ScoreInfluence(
        config, processes
    )  # (test_start, ScoredBlock)
    write = WriteInfluence(output, config, InfluenceReportConfig(class_names), overwrite)
    committed = (blocks, *sets) | "WriteInfluence" >> write  # Manifest
    return committed | "WriteTable" >> table if table else committed  # Manifest
