"""Input files that an attempt finished before it died, taken over by the next attempt.

Once all examples of a file are extracted and written, a small JSON file beside the features lists
the parts. A later attempt with the same fingerprint takes these parts over, if every byte is still
there; the commit of a set deletes the JSON files with all else that its manifest does not list.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import orjson
import tensorflow as tf

from transforms.core.errors import InputError
from transforms.core.ids import id_hashes
from transforms.examples.format import InputFile
from transforms.examples.rejects import Reject
from transforms.extraction.feature_files.unique_ids import id_buckets
from transforms.extraction.feature_files.written_part import IDS, PARTS, WrittenPart
from transforms.runtime import counters
from transforms.storage import filesystems
from transforms.storage.filesystems import StoredFile
from transforms.storage.records import tfrecords


class _FindFinishedDoFn(beam.DoFn):
    """Yields an InputFile that is not finished, else its parts, tagged."""

    def __init__(self, directory: str, attempt: str) -> None:
        self._directory = directory
        self._attempt = attempt

    def process(self, file: InputFile) -> Iterator[Any]:
        parts = read_finished(self._directory, self._attempt, file)
        if parts is None:
            yield file
            return
        counters.add("example-bytes-read", file.size)
        for part, ids in parts:
            counters.add("examples-reused", part.examples + sum(part.reasons.values()))
            yield beam.pvalue.TaggedOutput(PARTS, part)
            if part.features:
                yield from id_buckets(part.features, id_hashes(ids))


@dataclasses.dataclass
class FindFinished(beam.PTransform):
    """Takes over the files that an earlier attempt finished.

    Takes InputFile; gives `left`: InputFile, `parts`: WrittenPart, `ids`: their `id_buckets`.

    Attributes:
        directory: the feature set's directory.
        attempt: fingerprint of the attempt, as in `WriteFeatures`.
    """

    directory: str
    attempt: str

    def expand(self, input_files: beam.PCollection) -> Mapping[str, beam.PCollection]:
        find = beam.ParDo(_FindFinishedDoFn(self.directory, self.attempt))
        outputs = input_files | "FindFinished" >> find.with_outputs(PARTS, IDS, main="left")
        return {tag: outputs[tag] for tag in ("left", PARTS, IDS)}


def record_finished(
    directory: str, attempt: str, file: InputFile, parts: Sequence[WrittenPart]
) -> None:
    """Records that these parts hold all examples of a file."""
    content = {
        "fingerprint": attempt,
        "source": file.path,
        "parts": [dataclasses.asdict(part) for part in parts],
    }
    filesystems.write(directory, _name(attempt, file), orjson.dumps(content), 0)


def read_finished(
    directory: str, attempt: str, file: InputFile
) -> list[tuple[WrittenPart, list[bytes]]] | None:
    """Returns the parts that an earlier attempt wrote of a file of examples, with their records'
    ids; None if the file has to be read again.
    """
    path = filesystems.join(directory, _name(attempt, file))
    if not filesystems.exists(path):
        return None
    try:
        content = orjson.loads(filesystems.read(path))
        if (content["fingerprint"], content["source"]) != (attempt, file.path):
            raise ValueError("it is of another run")
        parts = [_part(part) for part in content["parts"]]
        for part in parts:
            if part.rejected:
                filesystems.read_verified(directory, part.rejected)
        return [(part, _ids(directory, part.features)) for part in parts]
    except (InputError, *filesystems.STORE_ERRORS, ValueError, KeyError, TypeError) as error:
        logging.getLogger(__name__).warning(
            "%s: what an earlier attempt left of it is not used: %s", file.path, error
        )
        return None


def _name(attempt: str, file: InputFile) -> str:
    return f"finished-{attempt[:16]}-{file.index:05d}.json"


def _part(content: Mapping) -> WrittenPart:
    features, rejected, first = (content[key] for key in ("features", "rejected", "first_reject"))
    return WrittenPart(
        (content["order"][0], content["order"][1]),
        features and StoredFile(**features),
        rejected and StoredFile(**rejected),
        content["examples"],
        content["reasons"],
        first and Reject(**first),
    )


def _ids(directory: str, file: StoredFile | None) -> list[bytes]:
    """Returns the ids of a file's records.

    Raises:
        InputError: the file is damaged.
    """
    if file is None:
        return []
    payloads = tfrecords.split_frames(filesystems.read_verified(directory, file))
    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(
            tf.constant(payloads), {"example_id": tf.io.FixedLenFeature([], tf.string)}
        )
    ids: list[bytes] = parsed["example_id"].numpy().tolist()
    return ids
