"""What an attempt that died has finished, so that the next one goes on from there.

When all of a file of examples has been extracted and written, a small JSON file beside its features
says what they are. A later attempt with the same fingerprint takes them over, if every byte is
still what was written; the commit of a set deletes what it does not list.
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
from transforms.extraction.feature_batch import IDS, PARTS, WrittenPart
from transforms.extraction.unique_ids import id_buckets
from transforms.runtime import counters
from transforms.storage import filesystems, tfrecords
from transforms.storage.filesystems import StoredFile


class _FindFinishedDoFn(beam.DoFn):
    def __init__(self, directory: str, attempt: str) -> None:
        self._directory = directory
        self._attempt = attempt

    def process(self, file: InputFile) -> Iterator[Any]:
        found = finished(self._directory, self._attempt, file)
        if found is None:
            yield file
            return
        counters.add("example-bytes-read", file.size)
        for part, ids in found:
            counters.add("examples-reused", part.examples + sum(part.reasons.values()))
            yield beam.pvalue.TaggedOutput(PARTS, part)
            if part.features:
                yield from id_buckets(part.features, id_hashes(ids))


@dataclasses.dataclass
class FindFinished(beam.PTransform):
    """Takes over what an earlier attempt has finished: InputFile → left: InputFile, parts:
    WrittenPart, ids: what `id_buckets` tells.
    """

    directory: str
    attempt: str

    def expand(self, input_files: beam.PCollection) -> Mapping[str, beam.PCollection]:
        find = beam.ParDo(_FindFinishedDoFn(self.directory, self.attempt))
        found = input_files | "FindFinished" >> find.with_outputs(PARTS, IDS, main="left")
        return {tag: found[tag] for tag in ("left", PARTS, IDS)}


def record(directory: str, fingerprint: str, file: InputFile, parts: Sequence[WrittenPart]) -> None:
    """Says that these parts are all there is of a file of examples."""
    content = {
        "fingerprint": fingerprint,
        "source": file.path,
        "parts": [dataclasses.asdict(part) for part in parts],
    }
    filesystems.write(directory, _name(fingerprint, file), orjson.dumps(content), 0)


def finished(
    directory: str, fingerprint: str, file: InputFile
) -> list[tuple[WrittenPart, list[bytes]]] | None:
    """The parts that an earlier attempt wrote of a file of examples, each with its records' ids;
    None where it has to be read again.
    """
    name = _name(fingerprint, file)
    path = filesystems.join(directory, name)
    if not filesystems.exists(path):
        return None
    try:
        content = orjson.loads(filesystems.read(path))
        if (content["fingerprint"], content["source"]) != (fingerprint, file.path):
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
    payloads = tfrecords.split_frames(filesystems.read_verified(directory, file))
    with tf.device("/CPU:0"):
        parsed = tf.io.parse_example(
            tf.constant(payloads), {"example_id": tf.io.FixedLenFeature([], tf.string)}
        )
    ids: list[bytes] = parsed["example_id"].numpy().tolist()
    return ids
