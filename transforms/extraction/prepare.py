"""Stage 1 as a graph begins with it: the feature set of some examples, extracted unless it is
complete.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from transforms.core.errors import InputError
from transforms.examples.config import ExampleConfig
from transforms.examples.format import ExampleFormat, InputFile
from transforms.extraction.compute import ComputeFeatureSet
from transforms.extraction.config import ExtractionConfig
from transforms.extraction.example_format import (
    check_first_records,
    choose_batch_size,
    example_format,
    position_bytes,
)
from transforms.extraction.feature_files.commit import check_rejected
from transforms.extraction.feature_files.write import WriteFeatures
from transforms.extraction.load_model import LoadedModel
from transforms.extraction.reuse.base import Base
from transforms.extraction.tuning import DEFAULT_TUNING, ExtractionTuning
from transforms.extraction.worker.extractor import ExtractionPlan
from transforms.storage import globs, manifests
from transforms.storage.feature_set import FeatureSet
from transforms.storage.globs import MatchedFile
from transforms.storage.manifests import FeatureManifest
from transforms.storage.read_feature_set import ReadFeatureSet


def draft_manifest(
    files: Sequence[MatchedFile],
    form: ExampleFormat,
    model: LoadedModel,
    examples: ExampleConfig,
    config: ExtractionConfig,
) -> FeatureManifest:
    """Returns the manifest of a feature set, its files and counts still missing."""
    settings = {
        **model.settings,
        "examples": [
            {"name": file.name, "size": file.size, "modified": file.modified} for file in files
        ],
        "labels": config.labels,
        "label_key": examples.label_key if config.labels == "given" else None,
        "input_keys": [spec.key for spec in form.inputs],
        "id_key": examples.id_key,
        "keep_keys": list(examples.keep_keys),
        "parse_fn": examples.parse_fn,
        "allow_truncated_files": examples.allow_truncated_files,
        "feature_dtype": config.feature_dtype,
    }
    return FeatureManifest(
        kind="features",
        fingerprint=manifests.fingerprint(settings),
        settings=settings,
        files=(),
        counts={},
        model_fingerprint=model.fingerprint,
        task=model.loaded.loss.task,
        outputs=model.loaded.outputs,
        units=model.loaded.units + int(model.config.include_bias),
        checkpoints=model.checkpoint_names,
        learning_rates=model.learning_rates,
        rejected_files=(),
        rejected={},
        feature_dtype=config.feature_dtype,
        per_token=model.config.per_token,
        inputs=tuple(
            {"key": spec.key, "shape": list(spec.shape), "dtype": spec.dtype}
            for spec in form.inputs
        ),
    )


@dataclasses.dataclass
class ExtractFeatures(beam.PTransform):
    """Extracts the feature set of some examples: pipeline → FeatureSet (one).

    The examples and the output are checked when this object is made, before any graph runs. A set
    that is complete with the same settings is read, not extracted; one whose run died is gone on
    with.

    Attributes:
        examples: files of `tf.train.Example` as TFRecord, Parquet or `.npz` files; globs separated
            by commas.
        model: the loaded checkpoints.
        output: directory of the feature set.
        example_config: how examples are read.
        config: how features are extracted.
        field: the setting that names the examples, for messages.
        slice_keys: kept keys that the setting of this name asks for, for messages.
        tuning: sizes and thresholds that change no feature.

    Raises:
        InputError: the examples cannot be used, or `output` is complete with other settings.
    """

    examples: str
    model: LoadedModel
    output: str
    example_config: ExampleConfig = dataclasses.field(default_factory=ExampleConfig)
    config: ExtractionConfig = dataclasses.field(default_factory=ExtractionConfig)
    field: str = "examples"
    slice_keys: Sequence[str] = ()
    tuning: ExtractionTuning = DEFAULT_TUNING

    def __post_init__(self) -> None:
        files = globs.find(self.examples, self.field)
        loaded = self.model.loaded
        loaded.loss.check_label_mode(self.config.labels)
        form = example_format(self.example_config, self.config.labels, loaded)
        input_files = [
            InputFile(i, file.path, file.name, file.size) for i, file in enumerate(files)
        ]
        check_first_records(input_files, form, loaded.loss, self.field, self.slice_keys)
        self.draft = draft_manifest(files, form, self.model, self.example_config, self.config)
        self.complete = manifests.is_complete(self.output, self.draft, self.config.overwrite)
        if self.complete:
            # The limit changes nothing that is written, but must hold for a set of a laxer run too.
            committed = manifests.read(self.output, FeatureManifest, "output")
            check_rejected(committed, self.output, self.config.max_rejected_fraction)
        self.bytes_to_read = sum(file.size for file in files)
        self.empty_files = tuple(file.path for file in files if not file.size)
        self.stage = self._stage(input_files, form)

    def _stage(self, input_files: Sequence[InputFile], form: ExampleFormat) -> ComputeFeatureSet:
        config, attempt, base = self.config, self.draft.fingerprint, None
        if config.base is not None and not self.complete:
            if posixpath.normpath(config.base) == posixpath.normpath(self.output):
                raise InputError(
                    f"`base={config.base!r}` is where the new set would go: give it a directory of "
                    "its own"
                )
            base = Base.of(config.base, self.draft)
            # What is left to extract depends on what is copied.
            attempt = manifests.fingerprint([self.draft.fingerprint, base.fingerprint])
        size = config.batch_size or choose_batch_size(
            form.inputs, position_bytes(self.model.loaded)
        )
        return ComputeFeatureSet(
            input_files,
            form,
            self.model.model,
            ExtractionPlan(size, config.labels == "predicted", config.feature_dtype),
            self.example_config.allow_truncated_files,
            WriteFeatures(
                self.output,
                self.draft,
                config.max_rejected_fraction,
                config.overwrite,
                attempt,
                config.accelerator,
                self.tuning.file_limits,
            ),
            base,
            self.tuning,
        )

    def expand(self, pipeline: Any) -> beam.PCollection:
        if self.complete:
            read = ReadFeatureSet(self.output, "output", self.draft.fingerprint)
            return pipeline | "ReadFeatureSet" >> read  # FeatureSet
        return (
            pipeline
            | "ComputeFeatureSet" >> self.stage  # FeatureManifest
            | "NameFeatureSet"
            >> beam.Map(
                lambda manifest, directory=self.output: FeatureSet(directory, manifest)
            )  # FeatureSet
            # Planning waits for the set. Without a border it would be fused with the commit of one
            # set, which then waited for another.
            | "PublishFeatureSet" >> beam.Reshuffle()  # FeatureSet
        )
