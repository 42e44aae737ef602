"""What a command's flags name, found and checked before any work starts."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import posixpath
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from transforms.core.errors import InputError
from transforms.examples.batch import ParsedExample
from transforms.examples.format import ExampleFormat, InputFile, InputSpec, resolve_function
from transforms.examples.parse_record import parse_example
from transforms.examples.read import first_records
from transforms.examples.rejects import Reject
from transforms.extraction.compute import ComputeFeatureSet
from transforms.extraction.extractor import ExtractionPlan
from transforms.extraction.feature_files.commit import check_rejected
from transforms.extraction.feature_files.write import WriteFeatures
from transforms.extraction.model import Model, choose_threads, localize
from transforms.extraction.reuse.base import Base
from transforms.models import checkpoint_files, checkpoints
from transforms.models.checkpoint_files import CheckpointInfo
from transforms.models.checkpoints import Checkpoints, ModelSpec
from transforms.models.losses.loss import Loss
from transforms.storage import filesystems, globs, manifests
from transforms.storage.feature_manifest import FeatureManifest, usable_rate

# One call of the model takes at most so much input, and gives so much of features, that what is
# inside it stays within a worker's memory. A larger call is no faster: it costs the first one the
# time to get the memory, and the last of a file that for the rows it is padded with.
_INPUT_BYTES, _FEATURE_BYTES = 16 << 20, 64 << 20
_BATCH_EXAMPLES = 256
_FIRST_RECORDS = 5
# The key of a model's only input, whose own name is mostly one that Keras made up.
_ONE_INPUT = "image"


@dataclasses.dataclass(frozen=True)
class PreparedModel:
    """The checkpoints of a run, loaded once in this process.

    Attributes:
        model: what the graph carries.
        loaded: the loaded checkpoints; whoever runs the graph in this process shares them while
            this is held.
        infos: what is known of each checkpoint, in order.
        learning_rates: η of each, from the flag or its optimizer; None where neither tells.
        settings: what went into the fingerprint.
        fingerprint: the model fingerprint.
    """

    model: Model
    loaded: Checkpoints
    infos: tuple[CheckpointInfo, ...]
    learning_rates: tuple[float | None, ...]
    settings: dict[str, Any]
    fingerprint: str


def find_checkpoints(patterns: str) -> tuple[list[str], bool]:
    """Finds the checkpoints of a comma-separated list of paths, prefixes and globs; and whether the
    list gives their order.

    Raises:
        InputError: one of them matches nothing.
    """
    wanted = globs.split_patterns(patterns)
    found: list[str] = []
    for pattern in wanted:
        try:
            matched = [m.path for glob in (pattern, pattern + ".index") for m in globs.match(glob)]
        except (*filesystems.STORE_ERRORS, ValueError) as error:
            raise InputError(
                f"--checkpoints={pattern!r} cannot be read: {filesystems.describe_error(error)}"
            ) from error
        paths = checkpoint_files.group_paths(matched)
        if not paths:
            raise InputError(
                f"--checkpoints={pattern!r} matches no checkpoint: expected .keras or .weights.h5 "
                "files, or a TensorFlow checkpoint's prefix"
            )
        repeated = [path for path in paths if path in found]
        if repeated:
            raise InputError(f"--checkpoints names {repeated[0]} twice: name each checkpoint once")
        found += paths
    if not found:
        raise InputError(
            "--checkpoints is empty: give .keras or .weights.h5 files, or prefixes of TensorFlow "
            "checkpoints"
        )
    return found, not any(map(globs.is_glob, wanted))


def prepare_model(args: argparse.Namespace, rates_needed: bool) -> PreparedModel:
    """Finds, orders, loads and fingerprints the checkpoints that the flags name.

    `rates_needed`: whether every checkpoint must have a usable learning rate, as scoring demands.

    Raises:
        InputError: any of them cannot be used.
    """
    paths, keep_order = find_checkpoints(args.checkpoints)
    spec = ModelSpec(
        tuple(paths),
        args.model,
        args.imports,
        args.layer,
        args.loss,
        args.include_bias,
        args.output_name,
        args.per_token,
    )
    choose_threads(len(paths))
    checkpoints.import_modules(args.imports)
    local = localize(spec)
    stored = dict(zip(local.checkpoints, paths, strict=True))
    infos = checkpoint_files.order(
        [checkpoint_files.inspect(path) for path in local.checkpoints], keep_order
    )
    spec = dataclasses.replace(spec, checkpoints=tuple(stored[info.path] for info in infos))
    own = (info.learning_rate for info in infos)
    rates = tuple(
        args.learning_rates
        or (rate if rate is not None and math.isfinite(rate) else None for rate in own)
    )
    if len(rates) != len(infos):
        names = ", ".join(posixpath.basename(info.path) for info in infos)
        raise InputError(
            f"--learning_rates has {len(rates)} numbers, there are {len(infos)} checkpoints "
            f"({names}): give one for each, in this order"
        )
    for rate, info in zip(rates, infos, strict=True):
        if rates_needed or args.learning_rates:
            usable_rate(rate, posixpath.basename(info.path))
    model = Model(spec, tuple(info.digest for info in infos), args.share_checkpoints == "machine")
    loaded = model.acquire()
    local_model = localize(spec).model
    settings = {
        "model": local_model
        and (
            hashlib.sha256(filesystems.read(local_model)).hexdigest()
            if local_model.endswith((".keras", ".json"))
            else local_model
        ),
        "checkpoints": [
            {"name": posixpath.basename(info.path), "sha256": info.digest} for info in infos
        ],
        "layer": checkpoints.base_name(loaded.layer),
        "loss": loaded.loss.description,
        "include_bias": args.include_bias,
        **({"output": loaded.output} if loaded.output is not None else {}),
        **({"per_token": True} if args.per_token else {}),
    }
    return PreparedModel(
        model, loaded, tuple(infos), rates, settings, manifests.fingerprint(settings)
    )


@dataclasses.dataclass(frozen=True)
class PreparedFeatures:
    """A feature set that a run needs: where, its fingerprint, whether it is already there, and the
    stage that computes it.
    """

    directory: str
    fingerprint: str
    complete: bool
    stage: ComputeFeatureSet
    bytes_to_read: int


def prepare_features(
    args: argparse.Namespace,
    examples: str,
    flag: str,
    labels: str,
    directory: str,
    base: str | None,
    prepared: PreparedModel,
    overwrite: bool,
) -> PreparedFeatures:
    """Finds the examples of a set, checks how they are read, and whether `directory` already holds
    their features.

    `flag` is the name of the option that `examples` comes from; `base` is a feature set to copy
    what did not change from.

    Raises:
        InputError: the examples cannot be used, or `directory` is complete with other settings.
    """
    found = globs.find(examples, flag)
    loaded = prepared.loaded
    loaded.loss.check_label_mode(labels)
    form = _example_format(args, labels, loaded)
    input_files = [InputFile(i, file.path, file.name, file.size) for i, file in enumerate(found)]
    _look_at_first(input_files, form, loaded.loss, flag, getattr(args, "slice_keys", ()))
    settings = {
        **prepared.settings,
        "examples": [
            {"name": file.name, "size": file.size, "modified": file.modified} for file in found
        ],
        "labels": labels,
        "label_key": args.label_key if labels == "given" else None,
        "input_keys": [spec.key for spec in form.inputs],
        "id_key": args.id_key,
        "keep_keys": list(args.keep_keys),
        "parse_fn": args.parse_fn,
        "allow_truncated_files": args.allow_truncated_files,
        "feature_dtype": args.feature_dtype,
    }
    fingerprint = manifests.fingerprint(settings)
    draft = FeatureManifest(
        kind="features",
        fingerprint=fingerprint,
        settings=settings,
        files=(),
        counts={},
        model_fingerprint=prepared.fingerprint,
        task=loaded.loss.task,
        outputs=loaded.outputs,
        units=loaded.units + int(args.include_bias),
        checkpoints=tuple(posixpath.basename(info.path) for info in prepared.infos),
        learning_rates=prepared.learning_rates,
        rejected_files=(),
        rejected={},
        feature_dtype=args.feature_dtype,
        per_token=args.per_token,
        inputs=tuple(
            {"key": spec.key, "shape": list(spec.shape), "dtype": spec.dtype}
            for spec in form.inputs
        ),
    )
    complete = manifests.is_complete(directory, draft, overwrite)
    if complete:
        # The limit changes nothing that is written, but a set that a laxer run made must still meet
        # it.
        check_rejected(
            manifests.read(directory, FeatureManifest, "output"),
            directory,
            args.max_rejected_fraction,
        )
    attempt, copied = fingerprint, None
    if base is not None and not complete:
        if posixpath.normpath(base) == posixpath.normpath(directory):
            raise InputError(
                f"--base={base!r} is where the new set would go: give it a directory of its own"
            )
        copied = Base.of(base, draft)
        # What is left to extract depends on what is copied.
        attempt = manifests.fingerprint([fingerprint, copied.fingerprint])
    stage = ComputeFeatureSet(
        input_files,
        form,
        prepared.model,
        ExtractionPlan(
            args.batch_size or _batch_size(form.inputs, _position_bytes(loaded)),
            labels == "predicted",
            args.feature_dtype,
        ),
        args.allow_truncated_files,
        WriteFeatures(
            directory, draft, args.max_rejected_fraction, overwrite, attempt, args.accelerator
        ),
        copied,
    )
    return PreparedFeatures(
        directory, fingerprint, complete, stage, sum(file.size for file in found)
    )


def _example_format(args: argparse.Namespace, labels: str, loaded: Checkpoints) -> ExampleFormat:
    inputs = loaded.inputs
    keys = args.input_keys
    if keys is None:
        keys = (_ONE_INPUT,) if len(inputs) == 1 else tuple(spec.name for spec in inputs)
    if len(keys) != len(inputs):
        told = ", ".join(f"{spec.name} {spec.shape}" for spec in inputs)
        raise InputError(
            f"--input_keys names {len(keys)} keys, the model has {len(inputs)} inputs ({told}): "
            "name one for each, in this order"
        )
    for spec in inputs:
        if any(size is None for size in spec.shape):
            raise InputError(
                f"the model's input {spec.name} has the free shape {spec.shape}: batches need a "
                "fixed one; save the model with a fixed input shape"
            )
    if args.parse_fn:
        resolve_function(args.parse_fn, "parse_fn")
    return ExampleFormat(
        tuple(
            InputSpec(key, tuple(size for size in spec.shape if size is not None), spec.dtype)
            for key, spec in zip(keys, inputs, strict=True)
        ),
        args.label_key,
        loaded.loss.label_width * (loaded.positions or 1),
        labels == "given",
        args.id_key,
        args.keep_keys,
        args.parse_fn,
    )


def _batch_size(inputs: Sequence[InputSpec], position_bytes: int = 0) -> int:
    size = sum(math.prod(spec.shape) * tf.as_dtype(spec.dtype).size for spec in inputs)
    return max(
        1,
        min(
            _BATCH_EXAMPLES, _INPUT_BYTES // max(size, 1), _FEATURE_BYTES // max(position_bytes, 1)
        ),
    )


def _position_bytes(loaded: Checkpoints) -> int:
    """The features of all positions of an example, which are many times its inputs; 0 where there
    is one vector per example.
    """
    return 4 * (loaded.positions or 0) * loaded.size * (loaded.outputs + loaded.units)


def _look_at_first(
    input_files: Sequence[InputFile],
    form: ExampleFormat,
    loss: Loss,
    flag: str,
    sliced: Sequence[str],
) -> None:
    """Reads a few records, so that a wrong flag is told now and not after every record has been
    rejected.
    """
    empty = [file.path for file in input_files if not file.size]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        print(
            f"warning: --{flag}: {empty[0]}{more} is empty, as a writer that died leaves it",
            file=sys.stderr,
        )
    for file in input_files:
        found = first_records(file, _FIRST_RECORDS)
        if found:
            break
    else:
        return
    if not form.parse_fn:
        _check_keys(found[0], form, flag, sliced)
    outcomes = [
        parse_example(record, file.name, i, file.path, form) for i, record in enumerate(found)
    ]
    # Labels of positions are looked at once it is known which of them are masked.
    check = form.label_width == loss.label_width
    details = [
        outcome.detail
        if isinstance(outcome, Reject)
        else _label_detail(outcome, loss)
        if check
        else None
        for outcome in outcomes
    ]
    if details[0] is not None and None not in details:
        raise InputError(
            f"--{flag}: none of the first {len(found)} records of {file.path} can be used; the "
            f"first: {details[0]}"
        )


def _label_detail(example: ParsedExample, loss: Loss) -> str | None:
    return None if example.label is None else loss.invalid_labels(example.label[None])[0]


def _check_keys(serialized: bytes, form: ExampleFormat, flag: str, sliced: Sequence[str]) -> None:
    try:
        keys = sorted(tf.train.Example.FromString(serialized).features.feature)
    except Exception:
        # Said with the other details of records that cannot be used.
        return
    wanted = [(spec.key, "input_keys") for spec in form.inputs]
    wanted += [(form.label_key, "label_key")] if form.labelled else []
    wanted += [(form.id_key, "id_key")] if form.id_key else []
    wanted += [(key, "slice_keys" if key in sliced else "keep_keys") for key in form.keep_keys]
    for key, option in wanted:
        if key not in keys:
            hint = (
                f"; without labels, use --{flag.replace('examples', 'labels')}=predicted"
                if option == "label_key"
                else ""
            )
            raise InputError(
                f"the first record of --{flag} has no key {key!r} (its keys: "
                f"{', '.join(keys) or 'none'}): name the right one with --{option}{hint}"
            )
