"""Stage 1 in a pipeline of a test's own, and what it leaves: a feature set's manifest, features,
records and rejects.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from transforms.core.features import Features
from transforms.examples import rejects
from transforms.examples.format import ExampleFormat, InputFile, InputSpec
from transforms.extraction.compute import ComputeFeatureSet
from transforms.extraction.feature_files.write import WriteFeatures
from transforms.extraction.tuning import DEFAULT_TUNING, ExtractionTuning
from transforms.extraction.worker.extractor import ExtractionPlan
from transforms.extraction.worker.model import Model
from transforms.models import checkpoint_files
from transforms.models.checkpoints import ModelSpec
from transforms.storage import filesystems, manifests, tfrecords
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_record import decode

ATTEMPT = "0" * 64


def model_of(paths: Sequence[pathlib.Path], kind: type[Model] = Model, **fields: Any) -> Model:
    """The checkpoints as a pipeline carries them, or a stand-in of the `kind`."""
    names = tuple(map(str, paths))
    digests = tuple(checkpoint_files.digest(name) for name in names)
    per_token = fields.pop("per_token", False)
    return kind(ModelSpec(names, per_token=per_token), digests, **fields)


def extract_set(
    model: Model,
    examples: Sequence[pathlib.Path],
    directory: pathlib.Path,
    batch_size: int = 256,
    tuning: ExtractionTuning = DEFAULT_TUNING,
    key: str = "image",
) -> None:
    """Extracts the features of examples with ids under `id` and inputs under `key`."""
    loaded = model.acquire()
    inputs = tuple(InputSpec(key, tuple(spec.shape), spec.dtype) for spec in loaded.inputs)
    form = ExampleFormat(
        inputs, label_width=loaded.loss.label_width * (loaded.positions or 1), id_key="id"
    )
    files = [
        InputFile(i, str(path), path.name, path.stat().st_size) for i, path in enumerate(examples)
    ]
    checkpoints = tuple(pathlib.Path(path).name for path in model.spec.checkpoints)
    draft = FeatureManifest(
        kind="features",
        fingerprint=ATTEMPT,
        settings={},
        files=(),
        counts={},
        model_fingerprint=ATTEMPT,
        task=loaded.loss.task,
        outputs=loaded.outputs,
        units=loaded.units + 1,
        checkpoints=checkpoints,
        learning_rates=(1.0,) * len(checkpoints),
        rejected_files=(),
        rejected={},
        per_token=model.spec.per_token,
    )
    write = WriteFeatures(str(directory), draft, 0.0, False, ATTEMPT, limits=tuning.file_limits)
    stage = ComputeFeatureSet(
        files, form, model, ExtractionPlan(batch_size), False, write, tuning=tuning
    )
    with beam.Pipeline("FnApiRunner", PipelineOptions([])) as pipeline:
        pipeline | "ComputeFeatures" >> stage  # FeatureManifest


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
