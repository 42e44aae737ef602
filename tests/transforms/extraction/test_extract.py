"""Stage 1 through Beam: features equal full per-example gradients, for any batch size and sharding,
and what is bad is set aside.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.conftest import (
    CLASSES,
    RATES,
    SHAPE,
    UNITS,
    Outcome,
    Tiny,
    build_tiny,
    damage,
    example,
    feature,
    write_records,
)
from tests.fakes.models import SlowModel
from tests.stage_one import (
    assert_same_features,
    extract_set,
    model_of,
    read_rejects,
    read_set,
)
from transforms.core.errors import InputError
from transforms.core.features import Features
from transforms.examples import rejects
from transforms.examples.format import InputFile
from transforms.extraction.feature_files.feature_batch import NO_FEATURES, FeatureBatch
from transforms.extraction.feature_files.part import FileLimits, Part
from transforms.extraction.feature_files.unique_ids import repeated_hashes
from transforms.extraction.feature_files.write import PartWriter
from transforms.extraction.tuning import ExtractionTuning
from transforms.extraction.worker import extract_batch, model
from transforms.extraction.worker.extractor import ExtractionPlan, FeatureExtractor
from transforms.extraction.worker.model import Model, choose_threads
from transforms.models import checkpoint_files
from transforms.models.checkpoints import Checkpoints, ModelSpec, load
from transforms.runtime import counters
from transforms.storage import filesystems, manifests

Run = Callable[..., Outcome]
T = len(RATES)


@pytest.fixture
def extract(tracin: Run, tiny: Tiny, tmp_path: pathlib.Path) -> Callable[..., Outcome]:
    """Runs `tracin features` on the tiny network, with ids by key, into `tmp_path/out`; further
    flags replace these.
    """

    def run(
        examples: pathlib.Path | str,
        *words: str,
        output: str = "out",
        model: Tiny | None = None,
        id_key: bool = True,
    ) -> Outcome:
        return tracin(
            "features",
            f"--examples={examples}",
            f"--checkpoints={(model or tiny).glob}",
            f"--output={tmp_path / output}",
            *(["--id_key=id"] if id_key else []),
            "--runner=FnApiRunner",
            *words,
        )

    return run


def full_gradients(
    path: pathlib.Path, images: np.ndarray, labels: Sequence[int]
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Each example's gradients of the compiled loss by the last layer's kernel [D, C] and bias [C],
    and the outputs [n, C].
    """
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(path)
    kernel, bias = model.layers[-1].kernel, model.layers[-1].bias
    kernels, biases, outputs = [], [], []
    for image, label in zip(images, labels, strict=True):
        with tf.GradientTape() as tape:
            output = model(image[None], training=False)
            loss = model.loss(tf.constant([label]), output)
        by_kernel, by_bias = tape.gradient(loss, [kernel.value, bias.value])
        kernels.append(by_kernel.numpy())
        biases.append(by_bias.numpy())
        outputs.append(output.numpy()[0])
    return kernels, biases, np.array(outputs)


# What a feature is


@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "softmax"])
def test_features_equal_full_gradients_of_each_checkpoint(
    extract: Run, tiny: Tiny, tiny_softmax: Tiny, tmp_path: pathlib.Path, softmax: bool
) -> None:
    model = tiny_softmax if softmax else tiny
    examples = write_records(tmp_path / "examples", model.payloads())
    assert extract(examples, model=model).status == 0
    found, records, _ = read_set(tmp_path / "out")
    assert found.checkpoints == ("epoch-1.keras", "epoch-2.keras", "epoch-10.keras")
    assert found.learning_rates == RATES
    assert records.example_ids.tolist() == [f"ex-{i:02d}".encode() for i in range(40)]
    assert records.labels.ravel().tolist() == model.labels.tolist()
    for t, path in enumerate(model.paths):
        kernels, biases, outputs = full_gradients(path, model.images, model.labels)
        probabilities = (
            outputs if softmax else np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        )
        for i in range(40):
            outer = np.outer(records.activations[i, t, :-1], records.loss_grads[i, t])
            np.testing.assert_allclose(outer, kernels[i], rtol=1e-4, atol=2e-6)
            np.testing.assert_allclose(
                records.activations[i, t, -1] * records.loss_grads[i, t],
                biases[i],
                rtol=1e-4,
                atol=1e-6,
            )
        np.testing.assert_allclose(
            records.label_probabilities[:, t], probabilities[range(40), model.labels], rtol=1e-4
        )
        assert np.abs(kernels).max() > 0.01
    assert records.predictions.ravel().tolist() == outputs.argmax(1).tolist()
    np.testing.assert_allclose(records.probabilities, probabilities.max(1), rtol=1e-5)
    np.testing.assert_allclose(
        records.loss_grad_norms,
        np.linalg.norm(records.loss_grads.astype(np.float64), axis=-1),
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        records.activation_norms,
        np.linalg.norm(records.activations.astype(np.float64), axis=-1),
        rtol=1e-14,
    )
    # The checkpoints differ, so that an order mixed up would be seen.
    assert np.abs(records.loss_grads[:, 0] - records.loss_grads[:, -1]).max() > 0.01


def test_without_the_bias_the_trailing_one_is_missing(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    examples = write_records(tmp_path / "examples", tiny.payloads()[:5])
    assert extract(examples, "--include_bias=false", output="without").status == 0
    assert extract(examples, output="with").status == 0
    (without, a, _), (included, b, _) = read_set(tmp_path / "without"), read_set(tmp_path / "with")
    assert (without.units, included.units) == (UNITS, UNITS + 1)
    assert a.activations.tobytes() == b.activations[..., :-1].tobytes()
    assert (b.activations[..., -1] == 1).all()
    assert without.model_fingerprint != included.model_fingerprint


def test_predicted_labels_are_the_last_checkpoints(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    # No labels in the data.
    unlabelled = write_records(
        tmp_path / "examples",
        [example(image=x, id=f"ex-{i:02d}") for i, x in enumerate(tiny.images)],
    )
    assert extract(unlabelled, "--labels=predicted").status == 0
    _, found, _ = read_set(tmp_path / "out")
    assert found.labels.tolist() == found.predictions.tolist()
    assert found.labels.ravel().tolist() != tiny.labels.tolist()
    # They are the features of examples that were given these labels, at every checkpoint.
    given = [
        example(image=x, label=int(y), id=f"ex-{i:02d}")
        for i, (x, y) in enumerate(zip(tiny.images, found.labels.ravel(), strict=True))
    ]
    assert extract(write_records(tmp_path / "labelled", given), output="given").status == 0
    assert_same_features(read_set(tmp_path / "given")[1], found)


def test_kept_keys_and_origins_are_stored(extract: Run, tiny: Tiny, tmp_path: pathlib.Path) -> None:
    payloads = [
        example(image=x, label=0, id=i, city=f"c{i}", size=[i, 0.5])
        for i, x in enumerate(tiny.images[:3])
    ]
    path = write_records(tmp_path / "data" / "examples", payloads)
    assert extract(path, "--keep_keys=city,size").status == 0
    _, _, raw = read_set(tmp_path / "out")
    for i, stored in enumerate(raw):
        assert stored["city"] == feature(f"c{i}") and stored["size"] == feature([i, 0.5])
        assert stored["source"].bytes_list.value[0].decode() == str(path)
        assert stored["offset"].int64_list.value[0] == i
    assert len({bytes(stored["content_digest"].bytes_list.value[0]) for stored in raw}) == 3


def test_without_an_id_key_ids_are_file_and_index(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    for name, rows in (("x/a", slice(0, 2)), ("y/a", slice(2, 5))):
        write_records(tmp_path / "data" / name, tiny.payloads()[rows])
    assert extract(tmp_path / "data" / "*" / "a", id_key=False).status == 0
    assert read_set(tmp_path / "out")[1].example_ids.tolist() == [
        b"x/a#0",
        b"x/a#1",
        b"y/a#0",
        b"y/a#1",
        b"y/a#2",
    ]


# Invariance


def test_batch_size_changes_no_bit(extract: Run, tiny: Tiny, tmp_path: pathlib.Path) -> None:
    examples = write_records(tmp_path / "examples", tiny.payloads())
    sets = []
    for size in (1, 7, 40, 256):
        assert extract(examples, f"--batch_size={size}", output=f"out-{size}").status == 0
        sets.append(read_set(tmp_path / f"out-{size}")[1])
    for other in sets[1:]:
        assert_same_features(other, sets[0])


def test_sharding_and_compression_change_no_bit(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = tiny.payloads()
    sets = []
    for shards, compression in ((1, ""), (3, ""), (2, "GZIP"), (50, "")):
        directory = tmp_path / f"in-{shards}"
        for shard, rows in enumerate(np.array_split(np.arange(40), shards)):
            write_records(directory / f"s-{shard:03d}", [payloads[i] for i in rows], compression)
        assert extract(directory / "s-*", "--batch_size=16", output=f"out-{shards}").status == 0
        found, records, _ = read_set(tmp_path / f"out-{shards}")
        # The set's order is that of files and of records in them.
        assert records.example_ids.tolist() == [f"ex-{i:02d}".encode() for i in range(40)]
        assert found.counts == {"examples": 40, "rejected": 0}
        sets.append(records)
    for other in sets[1:]:
        assert_same_features(other, sets[0])


def test_feature_files_are_cut_at_a_number_of_records(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    examples = write_records(tmp_path / "examples", tiny.payloads())
    assert extract(examples, output="whole").status == 0
    tuning = ExtractionTuning(file_limits=FileLimits(records=9))
    extract_set(model_of(tiny.paths), [examples], tmp_path / "cut", 16, tuning)
    found, records, _ = read_set(tmp_path / "cut")
    assert [file.count for file in found.files] == [9, 9, 9, 9, 4]
    assert_same_features(records, read_set(tmp_path / "whole")[1])


def test_checkpoints_are_loaded_once(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(4):
        write_records(tmp_path / "in" / f"s-{shard}", tiny.payloads()[shard::4])
    # The run's counts begin after the program has loaded them for its own checks; here both are
    # counted.
    counters.reset()
    with monkeypatch.context() as patch:
        patch.setattr(counters, "reset", lambda: None)
        assert extract(tmp_path / "in" / "s-*", "--batch_size=4").status == 0
    counts = counters.snapshot()
    assert counts["checkpoint-loads"] == 1
    assert counts["examples-read"] == counts["examples-extracted"] == 40
    assert counts["example-bytes-read"] == sum(
        path.stat().st_size for path in (tmp_path / "in").iterdir()
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_are_stored_in_a_shorter_dtype_where_asked(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, dtype: str
) -> None:
    examples = write_records(tmp_path / "examples", tiny.payloads())
    assert extract(examples).status == 0
    assert extract(examples, f"--feature_dtype={dtype}", output="short").status == 0
    (_, whole, _), (found, short, raw) = read_set(tmp_path / "out"), read_set(tmp_path / "short")
    assert found.feature_dtype == dtype
    # Half a unit in the last place of 8 or 11 bits.
    relative = 2.0 ** -(8 if dtype == "bfloat16" else 11)
    for name in ("loss_grads", "activations"):
        assert np.abs(getattr(short, name) - getattr(whole, name)).max() > 0
        np.testing.assert_allclose(
            getattr(short, name), getattr(whole, name), rtol=relative, atol=2.0**-25
        )
        assert len(raw[0][name].bytes_list.value[0]) == 2 * getattr(short, name)[0].size
    np.testing.assert_array_equal(short.label_probabilities, whole.label_probabilities)
    again = extract(examples, "--feature_dtype=float32", output="short")
    assert again.status == 2
    assert "feature_dtype was" in again.err


def test_what_float16_cannot_hold_is_set_aside(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    large = example(image=tiny.images[0] * 1e6, label=int(tiny.labels[0]), id="large")
    examples = write_records(tmp_path / "examples", [large, *tiny.payloads()])
    words = ("--feature_dtype=float16", "--max_rejected_fraction=0.1")
    assert extract(examples, *words).status == 0
    (reject,) = read_rejects(tmp_path / "out")
    assert (reject.example_id, reject.reason) == ("large", rejects.NON_FINITE_FEATURES)
    assert "beyond float16" in reject.detail
    assert extract(examples, "--feature_dtype=bfloat16", output="wide").status == 0
    assert not read_rejects(tmp_path / "wide")


# What is set aside


def with_bad(
    tiny: Tiny, directory: pathlib.Path
) -> tuple[pathlib.Path, list[tuple[int, str | None, str]]]:
    """Forty records of which six cannot be used, in two files; and (index, id, reason) of these in
    their file.
    """
    image = tiny.images[0]
    nan = image.copy()
    nan[1, 2, 0] = np.nan
    bad = {
        2: (example(picture=image, label=0, id="no-image"), "no-image", rejects.MISSING_KEY),
        5: (example(image=image.ravel()[:-1], label=0, id="short"), "short", rejects.WRONG_SIZE),
        6: (example(image=image, label=CLASSES, id="label-3"), "label-3", rejects.BAD_LABEL),
        9: (example(image=nan, label=0, id="nan"), "nan", rejects.NON_FINITE_INPUT),
        11: (example(image=b"\x89PNG\r\n\x1a\n", label=0, id="png"), "png", rejects.BAD_IMAGE),
        13: (b"\xff\xff\xff", None, rejects.NOT_AN_EXAMPLE),
    }
    payloads = tiny.payloads()
    first = [bad[i][0] if i in bad else payloads[i] for i in range(20)]
    path = write_records(directory / "s-0", first)
    damage(path, sum(len(payload) + 16 for payload in first[:15]) + 12)
    write_records(directory / "s-1", payloads[20:])
    return path, sorted(
        [(i, example_id, reason) for i, (_, example_id, reason) in bad.items()]
        + [(15, None, rejects.BAD_CHECKSUM)]
    )


@pytest.mark.parametrize("batch_size", [4, 256])
def test_bad_records_are_set_aside_and_the_others_are_untouched(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, batch_size: int
) -> None:
    path, expected = with_bad(tiny, tmp_path / "in")
    outcome = extract(
        tmp_path / "in" / "s-*", f"--batch_size={batch_size}", "--max_rejected_fraction=0.2"
    )
    assert outcome.status == 0, outcome.err
    found, records, _ = read_set(tmp_path / "out")
    assert found.counts == {"examples": 33, "rejected": 7}
    assert found.rejected == {reason: 1 for _, _, reason in expected}
    assert sum(file.count for file in found.rejected_files) == 7
    aside = read_rejects(tmp_path / "out")
    assert sorted((reject.offset, reject.example_id, reject.reason) for reject in aside) == expected
    assert {reject.source for reject in aside} == {str(path)}
    assert all(reject.detail for reject in aside)
    assert "7 rejected" in outcome.out and "bad-checksum 1" in outcome.out
    assert extract(write_records(tmp_path / "whole", tiny.payloads()), output="clean").status == 0
    gone = {index for index, _, _ in expected}
    clean = read_set(tmp_path / "clean")[1]
    assert_same_features(records, clean.take(np.array([i not in gone for i in range(40)])))


def test_too_many_bad_records_fail_the_run_in_one_line_without_a_manifest(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = with_bad(tiny, tmp_path / "in")
    outcome = extract(tmp_path / "in" / "s-*", "--max_rejected_fraction=0.1")
    assert outcome.status == 1
    # What is logged would stand on standard error, too.
    assert [
        record.name
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("apache_beam")
    ] == []
    assert_one_line(
        outcome.err,
        "7 of 40 examples were rejected",
        "--max_rejected_fraction=0.1",
        str(path),
        "/out/rejected-00000-",
    )
    assert manifests.read_if_any(str(tmp_path / "out"), "output") is None
    # What was set aside can be looked at.
    aside = [
        reject
        for file in (tmp_path / "out").glob("rejected-*.jsonl")
        for reject in rejects.from_jsonl(file.read_bytes())
    ]
    assert len(aside) == 7


def assert_one_line(text: str, *parts: str) -> None:
    assert len(text.strip().splitlines()) == 1, text
    for part in parts:
        assert part in text, text


def test_the_limit_itself_is_allowed_and_holds_for_a_set_that_is_already_there(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    with_bad(tiny, tmp_path / "in")
    assert extract(tmp_path / "in" / "s-*", "--max_rejected_fraction=0.175").status == 0
    stricter = extract(tmp_path / "in" / "s-*", "--max_rejected_fraction=0.17")
    assert stricter.status == 2
    assert_one_line(stricter.err, "7 of 40 examples were rejected", "--max_rejected_fraction=0.17")
    assert "nothing to do" in extract(tmp_path / "in" / "s-*", "--max_rejected_fraction=0.2").out


def test_a_model_that_gives_a_nan_costs_that_example(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = tiny.payloads()[:10]
    payloads[4] = example(image=np.full(SHAPE, 3e38), label=0, id="huge")
    assert (
        extract(
            write_records(tmp_path / "examples", payloads), "--max_rejected_fraction=0.5"
        ).status
        == 0
    )
    found, records, _ = read_set(tmp_path / "out")
    assert found.rejected == {rejects.NON_FINITE_FEATURES: 1}
    (reject,) = read_rejects(tmp_path / "out")
    assert (reject.offset, reject.example_id) == (4, "huge")
    assert len(records) == 9 and np.isfinite(records.loss_grads).all()


@pytest.mark.parametrize("together", [True, False], ids=["one file", "two files"])
def test_an_id_used_twice_fails_the_run_and_both_places_are_named(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, together: bool
) -> None:
    payloads = tiny.payloads()[:8]
    payloads[6] = payloads[1]
    directory = tmp_path / "in"
    for name, part in (
        (("s-0", payloads),) if together else (("s-0", payloads[:4]), ("s-1", payloads[4:]))
    ):
        write_records(directory / name, part)
    outcome = extract(directory / "s-*")
    assert outcome.status == 1
    second = f"{directory}/s-0 record 6" if together else f"{directory}/s-1 record 2"
    assert_one_line(outcome.err, "'ex-01'", f"{directory}/s-0 record 1", second)
    assert manifests.read_if_any(str(tmp_path / "out"), "output") is None


def test_a_truncated_file_fails_the_run_and_is_used_where_allowed(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = tiny.payloads()
    path = write_records(tmp_path / "examples", payloads)
    path.write_bytes(path.read_bytes()[:-5])
    start = sum(len(payload) + 16 for payload in payloads[:-1])
    outcome = extract(path)
    assert outcome.status == 1
    assert_one_line(outcome.err, str(path), f"record 39 at byte {start}", "--allow_truncated_files")
    assert manifests.read_if_any(str(tmp_path / "out"), "output") is None
    outcome = extract(path, "--allow_truncated_files", "--max_rejected_fraction=0.03")
    assert outcome.status == 0, outcome.err
    found, records, _ = read_set(tmp_path / "out")
    assert found.counts == {"examples": 39, "rejected": 1} and len(records) == 39
    assert [(reject.offset, reject.reason) for reject in read_rejects(tmp_path / "out")] == [
        (39, rejects.UNREADABLE_TAIL)
    ]


def test_an_empty_file_gives_an_empty_set(extract: Run, tmp_path: pathlib.Path) -> None:
    assert extract(write_records(tmp_path / "examples", [])).status == 0
    found, records, _ = read_set(tmp_path / "out")
    assert (
        found.counts == {"examples": 0, "rejected": 0} and found.files == () and len(records) == 0
    )


# Committing


def stamps(directory: pathlib.Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_a_rerun_does_nothing_and_other_settings_need_overwrite(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    examples = write_records(tmp_path / "examples", tiny.payloads())
    assert extract(examples).status == 0
    before = stamps(tmp_path / "out")

    again = extract(examples)
    assert again.status == 0 and "nothing to do" in again.out
    assert stamps(tmp_path / "out") == before

    # What does not change the features does not ask for them again.
    assert "nothing to do" in extract(examples, "--batch_size=3", "--learning_rates=1,2,3").out

    other = extract(examples, "--labels=predicted")
    assert other.status == 2
    assert_one_line(other.err, 'labels was "given", is "predicted"', "--overwrite")
    assert stamps(tmp_path / "out") == before

    replaced = extract(examples, "--labels=predicted", "--overwrite")
    assert replaced.status == 0
    after = stamps(tmp_path / "out")
    assert set(before) & set(after) == {manifests.FILE_NAME}
    assert read_set(tmp_path / "out")[0].settings["labels"] == "predicted"


def test_changed_examples_are_other_settings(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "examples"
    assert extract(write_records(path, tiny.payloads()[:5])).status == 0
    outcome = extract(write_records(path, tiny.payloads()[:6]))
    assert outcome.status == 2
    assert_one_line(outcome.err, "complete with other settings (examples ", "size was")


def test_what_a_dead_attempt_left_is_not_read_and_goes_with_the_commit(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    left = tmp_path / "out" / "features-00000-0000000000-deadbeef.tfrecord"
    write_records(left, [b"half a record"])
    assert extract(write_records(tmp_path / "examples", tiny.payloads())).status == 0
    found, records, _ = read_set(tmp_path / "out")
    assert left.name not in {file.name for file in found.files}
    # A person who reads `features-*` must not find it either.
    assert not left.exists()
    assert len(records) == found.examples == 40


def die_at_file(patch: pytest.MonkeyPatch, n: int) -> None:
    """Makes the extraction raise at the first batch of the n-th file that it comes to."""
    genuine, begun = extract_batch.extract_features, []

    def extract_features(batch: Any, *others: Any) -> Any:
        begun.extend([batch.file] if batch.first else [])
        if len(begun) == n:
            raise RuntimeError("the worker died")
        return genuine(batch, *others)

    patch.setattr(extract_batch, "extract_features", extract_features)


@pytest.fixture
def died(extract: Run, tiny: Tiny, tmp_path: pathlib.Path) -> Callable[..., Outcome]:
    """A run over four files of which two were finished when it died; gives what runs it again."""
    payloads = tiny.payloads()
    payloads[8] = example(image=[1.0], label=0, id="too small")
    for shard in range(4):
        write_records(tmp_path / "in" / f"s-{shard}", payloads[shard::4])

    def again(*words: str, output: str = "out") -> Outcome:
        return extract(
            tmp_path / "in" / "s-*",
            "--batch_size=4",
            "--max_rejected_fraction=0.1",
            *words,
            output=output,
        )

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception, match="the worker died"):
        die_at_file(patch, 3)
        again()
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert len(list((tmp_path / "out").glob("finished-*"))) == 2
    # What it had begun is given up; had it been killed, it would still be there.
    assert not list((tmp_path / "out").glob(".*"))
    filesystems.NewFile(str(tmp_path / "out"), "features-00002-0000000000-killed.tfrecord").add(
        b"half a record"
    )
    return again


def test_a_run_goes_on_from_what_a_dead_attempt_finished(died: Run, tmp_path: pathlib.Path) -> None:
    outcome = died()
    counts = counters.snapshot()
    assert (
        counts["examples-reused"] == 20
        and counts["examples-extracted"] + counts.get("examples-rejected", 0) == 20
    )
    assert "read 20 examples, took over 20 that an earlier attempt had finished" in outcome.out
    assert counts["example-bytes-read"] == sum(
        path.stat().st_size for path in (tmp_path / "in").iterdir()
    )
    assert died(output="whole").status == 0
    (found, records, _), (_, expected, _) = read_set(tmp_path / "out"), read_set(tmp_path / "whole")
    assert records.example_ids.tolist() == expected.example_ids.tolist()
    assert_same_features(records, expected)
    assert found.counts == {"examples": 39, "rejected": 1} and [
        r.example_id for r in read_rejects(tmp_path / "out")
    ] == ["too small"]
    # What told of finished files is of no use any more.
    assert {path.name.split("-")[0] for path in (tmp_path / "out").iterdir()} == {
        "features",
        "rejected",
        "manifest.json",
    }


def test_a_damaged_part_of_a_dead_attempt_is_computed_again(
    died: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished = sorted((tmp_path / "out").glob("finished-*"))[0].stem.split("-")[-1]
    (part,) = (tmp_path / "out").glob(f"features-{finished}-*")
    damage(part, 100)
    assert died().status == 0
    assert counters.snapshot()["examples-reused"] == 10
    (told,) = [
        record.getMessage()
        for record in caplog.records
        if record.name == "transforms.extraction.feature_files.resume"
    ]
    assert "what an earlier attempt left of it is not used" in told and "is damaged" in told
    assert len(read_set(tmp_path / "out")[1]) == 39


def test_what_was_finished_with_other_settings_is_not_taken_over(
    died: Run, tmp_path: pathlib.Path
) -> None:
    assert died("--include_bias=false").status == 0
    assert "examples-reused" not in counters.snapshot()
    found, records, _ = read_set(tmp_path / "out")
    assert found.units == records.activations.shape[2] == UNITS
    assert not list((tmp_path / "out").glob("finished-*"))


def test_an_id_used_twice_is_found_across_attempts(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    for shard in range(2):
        write_records(tmp_path / "in" / f"s-{shard}", tiny.payloads()[:5])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception, match="the worker died"):
        die_at_file(patch, 2)
        extract(tmp_path / "in" / "s-*")
    outcome = extract(tmp_path / "in" / "s-*")
    assert outcome.status == 1 and counters.snapshot()["examples-reused"] == 5
    assert_one_line(outcome.err, "is used twice", "s-0", "s-1")


def test_a_file_whose_beginning_went_elsewhere_does_not_count_as_finished(
    tmp_path: pathlib.Path,
) -> None:
    # As on a runner that splits the chain between extracting and writing.
    file = InputFile(0, "in", "in", 1)
    one = NO_FEATURES
    reject = rejects.Reject("in", 3, None, rejects.BAD_CHECKSUM, "…")
    for first, expected in ((False, 0), (True, 1)):
        writer = PartWriter(str(tmp_path), "0" * 32, "float32")
        nothing = np.empty(0, int), np.empty((0, 16), np.uint8), {}
        writer.add(FeatureBatch(file, one, *nothing, [reject], first, last=True))
        writer.end()
        assert len(list(tmp_path.glob("finished-*"))) == expected


@pytest.mark.parametrize("most", [1, 2, 3, 7])
@pytest.mark.parametrize("largest", [1, 120, 10_000])
def test_parts_are_cut_where_they_are_full_and_never_inside_an_example(
    tmp_path: pathlib.Path, most: int, largest: int
) -> None:
    limits = FileLimits(most, largest)
    file = InputFile(0, "in", "in", 1)
    sizes, offsets = [20, 5, 60, 0, 31, 31, 8, 90, 2], [0, 1, 1, 1, 4, 5, 5, 7, 9]

    def parts(step: int) -> list[list[tuple[int, int]]]:
        """The places and sizes of records in each part, of records that come `step` examples at a
        time.
        """
        part, found = Part(file, str(tmp_path), limits), [[]]
        examples = sorted(set(offsets))
        for start in range(0, len(examples), step):
            rows = [
                i for i, offset in enumerate(offsets) if offset in examples[start : start + step]
            ]
            payloads, places = [bytes(sizes[i]) for i in rows], np.array([offsets[i] for i in rows])
            while payloads:
                fit = part.count_fitting(payloads, "in", places)
                part.add(payloads[:fit], "in", places[:fit], [b"id"] * fit)
                found[-1] += zip(places[:fit].tolist(), map(len, payloads[:fit]), strict=True)
                payloads, places = payloads[fit:], places[fit:]
                if payloads:
                    assert (
                        part.is_full
                        and part.examples == len({place for place, _ in found[-1]})
                        and part.count == len(found[-1])
                    )
                    part = Part(file, str(tmp_path), limits)
                    found.append([])
        return found

    # One record after the other, as whoever reads the rule would cut them.
    expected: list[list[tuple[int, int]]] = [[]]
    for place, size in zip(offsets, sizes, strict=True):
        full = len(expected[-1]) >= most or sum(16 + other for _, other in expected[-1]) >= largest
        if full and expected[-1][-1][0] != place:
            expected.append([])
        expected[-1].append((place, size))
    for step in (1, 2, 6):
        assert parts(step) == expected


@pytest.mark.parametrize(("checkpoints", "threads"), [(1, None), (3, None), (4, 1), (9, 1)])
def test_where_there_is_a_checkpoint_for_each_processor_none_is_split(
    monkeypatch: pytest.MonkeyPatch, checkpoints: int, threads: int | None
) -> None:
    import tensorflow as tf

    told: list[int] = []
    monkeypatch.setattr(model.os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", told.append)
    choose_threads(checkpoints)
    assert told == ([] if threads is None else [threads])


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["one after the other", "at once"])
def test_batches_extracted_at_once_are_written_in_their_order(
    tiny: Tiny, tmp_path: pathlib.Path, seconds: float
) -> None:
    SlowModel.most = 0
    examples = write_records(tmp_path / "examples", tiny.payloads())
    extract_set(
        model_of(tiny.paths, SlowModel),
        [examples],
        tmp_path / "out",
        batch_size=4,
        tuning=ExtractionTuning(long_batch_seconds=seconds),
    )
    assert read_set(tmp_path / "out")[1].example_ids.tolist() == [
        f"ex-{i:02d}".encode() for i in range(40)
    ]
    assert SlowModel.most == (2 if seconds else 1)


def test_a_changed_checkpoint_is_refused_by_the_worker(tmp_path: pathlib.Path) -> None:
    model = build_tiny(softmax=True)
    model.compile("sgd", "sparse_categorical_crossentropy")
    path = tmp_path / "a.keras"
    model.save(path)
    carried = Model(ModelSpec((str(path),)), (checkpoint_files.digest(str(path)),))
    model.layers[-1].bias.assign([1.0, 2.0, 3.0])
    model.save(path)
    with pytest.raises(InputError, match="has changed since the run was started"):
        carried.acquire()


def test_a_gpus_memory_is_taken_as_it_is_needed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    grown = []

    def grow(gpu: str, on: bool) -> None:
        grown.append((gpu, on))
        if gpu == "GPU:0":
            raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    paths = tuple(map(str, tiny.paths))
    loaded = Model(
        ModelSpec(paths), tuple(checkpoint_files.digest(path) for path in paths)
    ).acquire()
    assert grown == [("GPU:0", True), ("GPU:1", True)] and loaded.size == T


# The pure functions


def test_repeated_hashes_are_found_across_files_and_told_in_order() -> None:
    def part(name: str, rows: Iterable[int], hashes: Iterable[int]) -> tuple[str, bytes, bytes]:
        return (
            name,
            np.array(list(rows), np.int32).tobytes(),
            np.array(list(hashes), np.uint64).tobytes(),
        )

    assert repeated_hashes([part("a", [0, 1], [7, 8]), part("b", [5], [9])]) == []
    groups = repeated_hashes([part("a", [3, 1, 2], [7, 7, 8]), part("b", [0, 4], [8, 7])])
    assert groups == [[("a", 1), ("a", 3), ("b", 4)], [("a", 2), ("b", 0)]]
    assert len(repeated_hashes([part("a", range(40), [i // 2 for i in range(40)])])) == 5


def test_padding_a_batch_does_not_touch_its_rows(tiny: Tiny) -> None:
    loaded = load(ModelSpec(tuple(map(str, tiny.paths))))
    labels = tiny.labels[:, None].astype(np.float64)
    extractor = FeatureExtractor(loaded, ExtractionPlan(40))
    ids = [f"ex-{i:02d}" for i in range(40)]
    whole = extractor(ids, [tiny.images], labels)
    assert whole.loss_grads.shape == (40, T, CLASSES) and whole.activations.shape == (
        40,
        T,
        UNITS + 1,
    )
    few = extractor(ids[:3], [tiny.images[:3]], labels[:3])
    assert_same_features(few, whole.take(slice(0, 3)))


def test_batches_of_other_lengths_are_computed_by_a_trace_of_their_own(
    tmp_path: pathlib.Path,
) -> None:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((None, 4)), layers.GlobalMaxPooling1D(), layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(tmp_path / "model.keras")
    extractor = FeatureExtractor(
        load(ModelSpec((str(tmp_path / "model.keras"),))), ExtractionPlan(8)
    )
    rng = np.random.default_rng(0)
    for length in (5, 7, 5):
        sequences = rng.normal(size=(8, length, 4)).astype(np.float32)
        found = extractor([f"ex-{i}" for i in range(8)], [sequences], np.zeros((8, 1)))
        assert found.activations[:, 0, :4].tolist() == sequences.max(axis=1).tolist()


@pytest.fixture
def greedy(tmp_path: pathlib.Path) -> Callable[[int], Checkpoints]:
    """Loads a network that asks for more memory than any machine has where a batch has more than so
    many rows.
    """
    import keras
    import tensorflow as tf

    @keras.saving.register_keras_serializable("tests")
    class Greedy(keras.layers.Layer):
        def __init__(self, most: int, **others: Any) -> None:
            super().__init__(**others)
            self.most = most

        def call(self, vectors: Any) -> Any:
            beyond = tf.maximum(tf.shape(vectors, tf.int64)[0] - self.most, 0)
            return vectors + tf.reduce_sum(tf.broadcast_to(vectors[:1, :1], [beyond, 1 << 50]))

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "most": self.most}

    def build(most: int) -> Checkpoints:
        layers = keras.layers
        model = keras.Sequential(
            [layers.Input((5,)), Greedy(most), layers.Dense(7, activation="relu"), layers.Dense(3)]
        )
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        keras.utils.set_random_seed(1)
        for layer in model.layers[1:]:
            layer.kernel.assign(np.random.default_rng(0).normal(size=layer.kernel.shape))
        model.save(tmp_path / f"{most}.keras")
        return load(ModelSpec((str(tmp_path / f"{most}.keras"),)))

    return build


def test_batches_are_halved_until_they_fit_into_memory(
    greedy: Callable[[int], Checkpoints], caplog: pytest.LogCaptureFixture
) -> None:
    inputs = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    ids, labels = [f"{i:02d}" for i in range(40)], np.zeros((40, 1))
    whole = FeatureExtractor(greedy(40), ExtractionPlan(40))(ids, [inputs], labels)
    assert whole.loss_grads.any() and not caplog.records
    counters.reset()
    extractor = FeatureExtractor(greedy(12), ExtractionPlan(40))
    assert_same_features(extractor(ids, [inputs], labels), whole)
    assert counters.snapshot()["batches-halved"] == 2
    told = [
        record.getMessage()
        for record in caplog.records
        if record.name == "transforms.extraction.worker.extractor"
    ]
    assert len(told) == 2 and "40 examples at once" in told[0] and "going on with 10" in told[1]
    # What did not fit once is not tried again.
    assert_same_features(extractor(ids[:15], [inputs[:15]], labels[:15]), whole.take(slice(15)))
    assert counters.snapshot()["batches-halved"] == 2


def test_a_model_too_large_for_the_smallest_batch_is_told(
    greedy: Callable[[int], Checkpoints],
) -> None:
    with pytest.raises(
        InputError,
        match=r"^the model runs out of memory with 2 examples "
        r"at "
        r"once "
        r"\(.*OOM.*\): "
        r"use "
        r"workers "
        r"with more",
    ):
        FeatureExtractor(greedy(1), ExtractionPlan(8))(
            ["a"], [np.zeros((1, 5), np.float32)], np.zeros((1, 1))
        )


@pytest.mark.parametrize("size", [1, 5, 33])
def test_matrix_products_of_a_real_networks_width_give_the_same_bits_in_any_batch(
    tmp_path: pathlib.Path, size: int
) -> None:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((784,)), layers.Dense(128, activation="relu"), layers.Dense(10)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(tmp_path / "a.keras")
    loaded = load(ModelSpec((str(tmp_path / "a.keras"),)))
    inputs = np.random.default_rng(0).normal(size=(40, 784)).astype(np.float32)
    ids, labels = [f"{i:02d}" for i in range(40)], np.zeros((40, 1))
    whole = FeatureExtractor(loaded, ExtractionPlan(40))(ids, [inputs], labels)
    extractor = FeatureExtractor(loaded, ExtractionPlan(size))
    parts = [
        extractor(ids[i : i + size], [inputs[i : i + size]], labels[i : i + size])
        for i in range(0, 40, size)
    ]
    assert_same_features(Features.concatenate(parts), whole)
