"""`tracin score` without TensorFlow: the same rows, and a report without pictures."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import example, write_records
from tests.synthetic import draw, write_set

# Runs the command where TensorFlow cannot be imported, or else prints what of it was loaded.
WITHOUT = "import sys; sys.modules['tensorflow'] = None; from pipeline.cli import main; main()"
WITH = (
    "import sys; from pipeline.cli import main; main(); "
    "print('loaded:', 'tensorflow' in sys.modules, 'keras' in sys.modules)"
)


def score(program: str, tmp_path: pathlib.Path, output: str) -> str:
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "score",
            f"--test_features={tmp_path / 'test'}",
            f"--train_features={tmp_path / 'train'}",
            f"--output={tmp_path / output}",
            "--k=5",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def write_pictures(tmp_path: pathlib.Path, name: str, count: int, seed: int) -> None:
    """A feature set of examples with pictures, and the examples."""
    from transforms.core.origins import Origin
    from transforms.examples.batch import digest
    from transforms.storage import filesystems
    from transforms.storage.records import feature_record, tfrecords

    payloads = [example(image=np.full((4, 4), i / 64, np.float32)) for i in range(count)]
    path = tmp_path / f"{name}.tfrecord"
    write_records(path, payloads)
    drawn = draw(np.random.default_rng(seed), count, 2, 3, 6, name)
    places = [Origin(str(path), i, digest(payload)) for i, payload in enumerate(payloads)]
    file = filesystems.write(
        str(tmp_path / name),
        "features-00000.tfrecord",
        tfrecords.join_frames(feature_record.encode(drawn, places)),
        count,
    )
    inputs = ({"key": "image", "shape": [4, 4], "dtype": "float32"},)
    write_set(tmp_path / name, [], seed, name, drawn, files=(file,), inputs=inputs)


@pytest.mark.parametrize("pictures", [False, True])
def test_rows_are_the_same_without_tensorflow(tmp_path: pathlib.Path, pictures: bool) -> None:
    for name, count, seed in (("test", 12, 1), ("train", 40, 2)):
        if pictures:
            write_pictures(tmp_path, name, count, seed)
        else:
            write_set(tmp_path / name, [count], seed, name)
    told = score(WITH, tmp_path, "with")
    score(WITHOUT, tmp_path, "without")
    shards = sorted(path.name for path in (tmp_path / "with").glob("influence-*"))
    assert shards
    for shard in shards:
        assert (tmp_path / "with" / shard).read_bytes() == (
            tmp_path / "without" / shard
        ).read_bytes()
    page = (tmp_path / "without" / "report.html").read_text()
    notes = len(re.findall("takes TensorFlow, which is not installed", page))
    if pictures:
        assert "data:image" in (tmp_path / "with" / "report.html").read_text()
        assert notes == 1 and "data:image" not in page
        assert "could not be shown" not in page
    else:
        assert notes == 0
        # Nothing to see, so that what reads pictures is not loaded, either.
        assert "loaded: False False" in told
