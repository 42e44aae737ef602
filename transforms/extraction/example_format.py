"""Where a model's inputs and labels are found in examples, checked on the first records."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from transforms.core.errors import InputError
from transforms.examples.batch import ParsedExample
from transforms.examples.config import ExampleConfig
from transforms.examples.format import ExampleFormat, InputFile, InputSpec, resolve_function
from transforms.examples.parse_record import parse_example
from transforms.examples.records import first_records
from transforms.examples.rejects import Reject
from transforms.models.checkpoints import Checkpoints
from transforms.models.losses.loss import Loss

# One call of the model takes at most so much input, and returns at most so much of features, so
# that its inner arrays stay within a worker's memory. Larger calls are no faster: the first one
# pays for getting the memory, the last one of a file for the rows it is padded with.
_INPUT_BYTES, _FEATURE_BYTES = 16 << 20, 64 << 20
_BATCH_EXAMPLES = 256
# As many as tell a wrong setting from one damaged record.
_FIRST_RECORDS = 5
# The key of a model's only input. Its own name is mostly one that Keras made up.
_ONE_INPUT = "image"


def example_format(config: ExampleConfig, labels: str, model: Checkpoints) -> ExampleFormat:
    """Returns where the parts of an example are found, for a model and `given` or `predicted`
    labels.

    Raises:
        InputError: the keys do not fit the model's inputs, an input has a free shape, or the
            parsing function cannot be imported.
    """
    inputs = model.inputs
    keys = config.input_keys
    if keys is None:
        keys = (_ONE_INPUT,) if len(inputs) == 1 else tuple(spec.name for spec in inputs)
    if len(keys) != len(inputs):
        listed = ", ".join(f"{spec.name} {spec.shape}" for spec in inputs)
        raise InputError(
            f"`input_keys` names {len(keys)} keys, the model has {len(inputs)} inputs ({listed}): "
            "name one for each, in this order"
        )
    for spec in inputs:
        if any(size is None for size in spec.shape):
            raise InputError(
                f"the model's input {spec.name} has the free shape {spec.shape}: batches need a "
                "fixed one; save the model with a fixed input shape"
            )
    if config.parse_fn:
        resolve_function(config.parse_fn, "parse_fn")
    return ExampleFormat(
        tuple(
            InputSpec(key, tuple(size for size in spec.shape if size is not None), spec.dtype)
            for key, spec in zip(keys, inputs, strict=True)
        ),
        config.label_key,
        model.loss.label_width * (model.positions or 1),
        labels == "given",
        config.id_key,
        config.keep_keys,
        config.parse_fn,
    )


def choose_batch_size(inputs: Sequence[InputSpec], position_bytes: int = 0) -> int:
    """Returns the examples per call of a model with these inputs: 256, or fewer large ones.

    `position_bytes` is the size of an example's features where it has a record per position.
    """
    size = sum(math.prod(spec.shape) * tf.as_dtype(spec.dtype).size for spec in inputs)
    within_inputs = _INPUT_BYTES // max(size, 1)
    within_features = _FEATURE_BYTES // max(position_bytes, 1)
    return max(1, min(_BATCH_EXAMPLES, within_inputs, within_features))


def position_bytes(model: Checkpoints) -> int:
    """Returns the size of the features of all positions of an example, many times its inputs; 0
    where an example is one record.
    """
    return 4 * (model.positions or 0) * model.size * (model.outputs + model.units)


def check_first_records(
    files: Sequence[InputFile],
    form: ExampleFormat,
    loss: Loss,
    field: str,
    slice_keys: Sequence[str] = (),
) -> None:
    """Reads a few records, so that a wrong setting is reported now and not after every record has
    been rejected.

    Args:
        files: the files of examples, in order; the first one with records is looked at.
        form: where the parts of an example are found.
        loss: what labels must suit.
        field: the setting that names the files, for messages.
        slice_keys: kept keys that the setting of this name asks for.

    Raises:
        InputError: a key is missing, or none of the records can be used.
    """
    for file in files:
        records = first_records(file, _FIRST_RECORDS)
        if records:
            break
    else:
        return
    if not form.parse_fn:
        _check_keys(records[0], form, field, slice_keys)
    outcomes = [
        parse_example(record, file.name, i, file.path, form) for i, record in enumerate(records)
    ]
    # Labels of positions are checked once it is known which positions are masked.
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
            f"`{field}`: none of the first {len(records)} records of {file.path} can be used; the "
            f"first: {details[0]}"
        )


def _label_detail(example: ParsedExample, loss: Loss) -> str | None:
    return None if example.label is None else loss.invalid_labels(example.label[None])[0]


def _check_keys(
    serialized: bytes, form: ExampleFormat, field: str, slice_keys: Sequence[str]
) -> None:
    try:
        keys = sorted(tf.train.Example.FromString(serialized).features.feature)
    except Exception:
        # Reported with the other details of records that cannot be used.
        return
    needed = [(spec.key, "input_keys") for spec in form.inputs]
    needed += [(form.label_key, "label_key")] if form.labelled else []
    needed += [(form.id_key, "id_key")] if form.id_key else []
    needed += [(key, "slice_keys" if key in slice_keys else "keep_keys") for key in form.keep_keys]
    for key, setting in needed:
        if key not in keys:
            labels = field.replace("examples", "labels")
            hint = f"; without labels, use `{labels}=predicted`" if setting == "label_key" else ""
            raise InputError(
                f"the first record of `{field}` has no key {key!r} (its keys: "
                f"{', '.join(keys) or 'none'}): name the right one with `{setting}`{hint}"
            )
