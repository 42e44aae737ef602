"""Stage 1 in a pipeline of a test's own, and what it leaves: a feature set's manifest, features,
records and rejects.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from transforms.core.features import Features
from transforms.examples import rejects
from transforms.examples.config import ExampleConfig
from transforms.extraction.config import ExtractionConfig
from transforms.extraction.load_model import load_model
from transforms.extraction.prepare import ExtractFeatures
from transforms.extraction.tuning import DEFAULT_TUNING, ExtractionTuning
from transforms.extraction.worker.model import Model
from transforms.models.config import ModelConfig
from transforms.runtime import counters
from transforms.storage import filesystems, manifests
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import tfrecords
from transforms.storage.records.feature_record import decode


def stage_one(
    checkpoints: Sequence[pathlib.Path],
    examples: pathlib.Path | str,
    directory: pathlib.Path,
    kind: type[Model] = Model,
    tuning: ExtractionTuning = DEFAULT_TUNING,
    input_keys: tuple[str, ...] | None = None,
    per_token: bool = False,
    share_checkpoints: str = "process",
    **config: Any,
) -> ExtractFeatures:
    """The transform that extracts the features of examples with ids under `id`.

    `kind` may be a stand-in for what a pipeline carries, and `config` holds fields of
    ExtractionConfig.
    """
    model = load_model(
        ModelConfig(
            [str(path) for path in checkpoints],
            per_token=per_token,
            share_checkpoints=share_checkpoints,
        )
    )
    carried = kind(model.model.spec, model.model.digests, model.model.per_machine)
    return ExtractFeatures(
        str(examples),
        dataclasses.replace(model, model=carried),
        str(directory),
        ExampleConfig(input_keys=input_keys, id_key="id"),
        ExtractionConfig(**config),
        tuning=tuning,
    )


def extract_set(*args: Any, options: Sequence[str] = (), **keywords: Any) -> dict[str, int]:
    """Runs `stage_one`, which takes the same arguments, with Beam's options.

    Returns Beam's counters; those of this process are left, too.
    """
    stage = stage_one(*args, **keywords)
    counters.reset()
    pipeline = beam.Pipeline("FnApiRunner", PipelineOptions(list(options)))
    pipeline | "ExtractFeatures" >> stage  # FeatureSet
    result = pipeline.run()
    result.wait_until_finish()
    return {
        counter.key.metric.name: counter.result for counter in result.metrics().query()["counters"]
    }


def read_set(directory: pathlib.Path) -> tuple[FeatureManifest, Features, list[Any]]:
    """A committed set: its manifest, its features in the set's order, and its raw records."""
    manifest = manifests.read(str(directory), FeatureManifest, "features")
    payloads = [
        payload
        for file in manifest.files
        for payload in tfrecords.split_frames(filesystems.read_verified(str(directory), file))
    ]
    raw = [tf.train.Example.FromString(payload).features.feature for payload in payloads]
    features = decode(
        payloads,
        len(manifest.checkpoints),
        manifest.outputs,
        manifest.units,
        manifest.integer_labels,
        manifest.feature_dtype,
    )
    return manifest, features, raw


def read_rejects(directory: pathlib.Path) -> list[rejects.Reject]:
    """The rejects of a committed set."""
    manifest = manifests.read(str(directory), FeatureManifest, "features")
    return [
        reject
        for file in manifest.rejected_files
        for reject in rejects.from_jsonl(filesystems.read_verified(str(directory), file))
    ]


def assert_same_features(found: Features, expected: Features) -> None:
    """Equal bit for bit, record by record of the same id."""
    a, b = (one.take(np.argsort(one.example_ids)) for one in (found, expected))
    assert a.example_ids.tolist() == b.example_ids.tolist()
    for name in (
        "labels",
        "predictions",
        "probabilities",
        "label_probabilities",
        "loss_grads",
        "activations",
        "loss_grad_norms",
        "activation_norms",
    ):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


def records_by_id(directory: pathlib.Path) -> tuple[FeatureManifest, dict[bytes, bytes]]:
    """A set's manifest and its serialized records by id."""
    manifest = manifests.read(str(directory), FeatureManifest, "features")
    payloads = [
        payload
        for file in manifest.files
        for payload in tfrecords.split_frames(filesystems.read_verified(str(directory), file))
    ]
    by_id = {
        tf.train.Example.FromString(payload)
        .features.feature["example_id"]
        .bytes_list.value[0]: payload
        for payload in payloads
    }
    assert len(by_id) == len(payloads)
    return manifest, by_id


def assert_one_line(text: str, *parts: str) -> None:
    """A message of one line that holds these parts."""
    assert len(text.strip().splitlines()) == 1, text
    for part in parts:
        assert part in text, text
