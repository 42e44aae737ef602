"""Examples whose labels are weighed and not judged yet, as files: what waits until all are weighed
would else fill the memory of a runner.

The files stand in the audit's directory, under names of their own for each attempt, until the audit
is committed, which deletes them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import uuid

import numpy as np

from transforms.audit.slices import Slices
from transforms.audit.suspicion import Evidence
from transforms.core.origins import Origins
from transforms.storage import filesystems
from transforms.storage.filesystems import StoredFile


@dataclasses.dataclass(frozen=True, eq=False)
class AuditedExamples:
    """What is known of the examples of a feature file, in order, beside the evidence for and
    against their labels.

    Attributes:
        file: its place in the set's manifest.
        example_ids: [n] byte strings.
        origins: the examples' places and content digests.
        labels, predictions: [n] int64, class indices.
        probabilities: [n] float32, of the last checkpoint's prediction.
        label_probabilities: [n] float64, of the label, the mean over the checkpoints.
        self_influence: [n] float64.
        test_influence: [n, S] float64, the mean influence on the test examples of each slice, or
            None without a test set.
        test_slices: what the slices are, or None.
    """

    file: int
    example_ids: np.ndarray
    origins: Origins
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray
    self_influence: np.ndarray
    test_influence: np.ndarray | None = None
    test_slices: Slices | None = None


_OWN = (
    "example_ids",
    "labels",
    "predictions",
    "probabilities",
    "label_probabilities",
    "self_influence",
)
_ORIGINS = ("source", "offsets", "digests")
_EVIDENCE = tuple(field.name for field in dataclasses.fields(Evidence))


@dataclasses.dataclass(frozen=True)
class Weighed:
    """A file of weighed examples: the place of their feature file in the set's manifest, and where
    they are.
    """

    file: int
    stored: StoredFile


def write(directory: str, known: AuditedExamples, evidence: Evidence) -> Weighed:
    """Stores weighed examples."""
    slices = known.test_slices
    about = {
        "file": known.file,
        "sources": known.origins.sources,
        "slices": slices
        and {"labels": slices.labels, "named": slices.named, "left_out": slices.left_out},
    }
    arrays = {name: getattr(known, name) for name in _OWN}
    arrays |= {name: getattr(known.origins, name) for name in _ORIGINS}
    arrays |= {name: getattr(evidence, name) for name in _EVIDENCE}
    if slices is not None and known.test_influence is not None:
        arrays |= {"test_influence": known.test_influence, "slice_counts": slices.counts}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        **arrays,
    )
    name = f"weighed-{known.file:06d}-{uuid.uuid4().hex[:8]}.npz"
    return Weighed(
        known.file, filesystems.write(directory, name, buffer.getvalue(), len(known.labels))
    )


def read(directory: str, weighed: Weighed) -> tuple[AuditedExamples, Evidence]:
    """Weighed examples, as they were stored.

    Raises:
        InputError: the file is gone or damaged.
    """
    with np.load(
        io.BytesIO(filesystems.read_verified(directory, weighed.stored)), allow_pickle=False
    ) as archive:
        arrays = {name: archive[name] for name in archive.files}
    about = json.loads(arrays["about"].tobytes())
    slices = about["slices"]
    if slices:
        named = tuple((key, value) for key, value in slices["named"])
        slices = Slices(slices["labels"], named, arrays["slice_counts"], tuple(slices["left_out"]))
    known = AuditedExamples(
        file=about["file"],
        origins=Origins(tuple(about["sources"]), *(arrays[name] for name in _ORIGINS)),
        **{name: arrays[name] for name in _OWN},
        test_influence=arrays.get("test_influence"),
        test_slices=slices,
    )
    return known, Evidence(**{name: arrays[name] for name in _EVIDENCE})
