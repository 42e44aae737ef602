"""What an attempt that died has finished, so that the next one goes on from there.

When all of a file of examples has been extracted and written, a small JSON file beside its features says what they are. A later attempt
with the same fingerprint takes them over, if every byte is still what was written; the commit of a set deletes what it does not list.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import orjson
import tensorflow as tf

from transforms import files, tfrecords
from transforms.errors import InputError
from transforms.examples import InputFile
from transforms.files import StoredFile
from transforms.rejects import Reject


@dataclasses.dataclass(frozen=True)
class WrittenPart:
    """A feature file that was written, what was set aside beside it, and what a person should know of that.

    Attributes:
        order: place of the part in the set: index of its input file, index of its first record there.
        features: the file of features, or None where all was set aside.
        rejected: the file of rejects, or None where nothing was.
        examples: how many examples have records in it.
        reasons: how many rejects, by reason.
        first_reject: one of them, as an example.
    """

    order: tuple[int, int]
    features: StoredFile | None
    rejected: StoredFile | None
    examples: int
    reasons: Mapping[str, int]
    first_reject: Reject | None


def record(directory: str, fingerprint: str, file: InputFile, parts: Sequence[WrittenPart]) -> None:
    """Says that these parts are all there is of a file of examples."""
    content = {"fingerprint": fingerprint, "source": file.path, "parts": [dataclasses.asdict(part) for part in parts]}
    files.write(directory, _name(fingerprint, file), orjson.dumps(content), 0)


def finished(directory: str, fingerprint: str, file: InputFile) -> list[tuple[WrittenPart, list[bytes]]] | None:
    """The parts that an earlier attempt wrote of a file of examples, each with its records' ids; None where it has to be read again."""
    name = _name(fingerprint, file)
    path = files.join(directory, name)
    if not files.exists(path):
        return None
    try:
        content = orjson.loads(files.read(path))
        if (content["fingerprint"], content["source"]) != (fingerprint, file.path):
            raise ValueError("it is of another run")
        parts = [_part(part) for part in content["parts"]]
        for part in parts:
            if part.rejected:
                files.read_verified(directory, part.rejected)
        return [(part, _ids(directory, part.features)) for part in parts]
    except (InputError, *files.STORE_ERRORS, ValueError, KeyError, TypeError) as error:
        logging.getLogger(__name__).warning("%s: what an earlier attempt left of it is not used: %s", file.path, error)
        return None


def _name(fingerprint: str, file: InputFile) -> str:
    return f"finished-{fingerprint[:16]}-{file.index:05d}.json"


def _part(content: Mapping) -> WrittenPart:
    written, rejected, first = (content[key] for key in ("features", "rejected", "first_reject"))
    return WrittenPart(
        (content["order"][0], content["order"][1]),
        written and StoredFile(**written),
        rejected and StoredFile(**rejected),
        content["examples"],
        content["reasons"],
        first and Reject(**first),
    )


def _ids(directory: str, file: StoredFile | None) -> list[bytes]:
    """The ids of a file's records.

    Raises:
        InputError: the file is not what was written.
    """
    if file is None:
        return []
    payloads = tfrecords.split_frames(files.read_verified(directory, file))
    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(tf.constant(payloads), {"example_id": tf.io.FixedLenFeature([], tf.string)})
    ids: list[bytes] = parsed["example_id"].numpy().tolist()
    return ids
