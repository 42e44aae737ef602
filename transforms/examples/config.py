"""What is asked of examples: the keys of their parts, and which files are accepted."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
    """How examples are read.

    Attributes:
        input_keys: keys of the model's inputs, in its order; None for `image`, or, of a model with
            several inputs, for their names.
        label_key: key of the label.
        id_key: key of the id; None for `<file>#<index>`.
        keep_keys: keys that are copied into the feature records.
        parse_fn: `module:function` that turns a serialized record into a mapping of these keys;
            None for `tf.train.Example`.
        allow_truncated_files: whether a file with an unreadable tail is used as far as it goes.
    """

    input_keys: tuple[str, ...] | None = None
    label_key: str = "label"
    id_key: str | None = None
    keep_keys: tuple[str, ...] = ()
    parse_fn: str | None = None
    allow_truncated_files: bool = False
