"""Vectors, indexes and searches of small feature sets, by pipelines that tests compose."""

from __future__ import annotations

import pathlib

import apache_beam as beam
import numpy as np

from transforms.core.features import Features
from transforms.scoring.tiles import spans
from transforms.storage import manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import FeatureManifest, Manifest
from transforms.vectors.config import ProjectionConfig, VectorTuning
from transforms.vectors.files import ExportVectors
from transforms.vectors.index import BuildIndex

RATES = (0.1, 0.02)
# Files of at most 100 vectors, and indexes of at most 100 vectors of 36 numbers.
SMALL = VectorTuning(file_rows=100, index_bytes=100 * (4 * 36 + 300), index_extra_bytes=300)


def feature_set(directory: pathlib.Path) -> FeatureSet:
    return FeatureSet(str(directory), manifests.read(str(directory), FeatureManifest, "features"))


def features_of(directory: pathlib.Path) -> Features:
    read = feature_set(directory)
    return read.read(spans(read.counts, 0, sum(read.counts)))


def export(
    directory: pathlib.Path,
    output: pathlib.Path,
    config: ProjectionConfig,
    tuning: VectorTuning = SMALL,
) -> Manifest:
    features = feature_set(directory)
    with beam.Pipeline() as pipeline:
        (
            pipeline
            | "NameFeatures" >> beam.Create([features])
            | ExportVectors(features, config, str(output), tuning=tuning)
        )
    return manifests.read_kind(str(output), "output", "vectors")


def build_index(
    directory: pathlib.Path,
    output: pathlib.Path,
    config: ProjectionConfig,
    kind: str = "auto",
    tuning: VectorTuning = SMALL,
) -> Manifest:
    features = feature_set(directory)
    with beam.Pipeline() as pipeline:
        (
            pipeline
            | "NameFeatures" >> beam.Create([features])
            | BuildIndex(features, config, str(output), kind, tuning=tuning)
        )
    return manifests.read_kind(str(output), "output", "index")


def vectors_in(directory: pathlib.Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(directory.glob("vectors-*.npy"))])
