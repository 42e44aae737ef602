"""Stage 1 as a whole: features equal full gradients of each example, in any batches and shards."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.conftest import RATES, UNITS, Outcome, Tiny, example, feature, write_records
from tests.stage_one import assert_one_line, assert_same_features, read_rejects, read_set
from transforms.examples import rejects
from transforms.runtime import counters
from transforms.storage import manifests

Run = Callable[..., Outcome]


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


@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "softmax"])
def test_features_equal_full_gradients_of_each_checkpoint(
    extract: Run, tiny: Tiny, tiny_softmax: Tiny, tmp_path: pathlib.Path, softmax: bool
) -> None:
    model = tiny_softmax if softmax else tiny
    examples = write_records(tmp_path / "examples", model.payloads())
    assert extract(examples, model=model).status == 0
    manifest, records, _ = read_set(tmp_path / "out")
    assert manifest.checkpoints == ("epoch-1.keras", "epoch-2.keras", "epoch-10.keras")
    assert manifest.learning_rates == RATES
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
    _, predicted, _ = read_set(tmp_path / "out")
    assert predicted.labels.tolist() == predicted.predictions.tolist()
    assert predicted.labels.ravel().tolist() != tiny.labels.tolist()
    # They are the features of examples that were given these labels, at every checkpoint.
    given = [
        example(image=x, label=int(y), id=f"ex-{i:02d}")
        for i, (x, y) in enumerate(zip(tiny.images, predicted.labels.ravel(), strict=True))
    ]
    assert extract(write_records(tmp_path / "labelled", given), output="given").status == 0
    assert_same_features(read_set(tmp_path / "given")[1], predicted)


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_are_stored_in_a_shorter_dtype_where_asked(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, dtype: str
) -> None:
    examples = write_records(tmp_path / "examples", tiny.payloads())
    assert extract(examples).status == 0
    assert extract(examples, f"--feature_dtype={dtype}", output="short").status == 0
    (_, whole, _), (manifest, short, raw) = read_set(tmp_path / "out"), read_set(tmp_path / "short")
    assert manifest.feature_dtype == dtype
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
        manifest, records, _ = read_set(tmp_path / f"out-{shards}")
        # The set's order is that of files and of records in them.
        assert records.example_ids.tolist() == [f"ex-{i:02d}".encode() for i in range(40)]
        assert manifest.counts == {"examples": 40, "rejected": 0}
        sets.append(records)
    for other in sets[1:]:
        assert_same_features(other, sets[0])


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
    manifest, records, _ = read_set(tmp_path / "out")
    assert manifest.counts == {"examples": 39, "rejected": 1} and len(records) == 39
    assert [(reject.offset, reject.reason) for reject in read_rejects(tmp_path / "out")] == [
        (39, rejects.UNREADABLE_TAIL)
    ]


def test_an_empty_file_gives_an_empty_set(extract: Run, tmp_path: pathlib.Path) -> None:
    assert extract(write_records(tmp_path / "examples", [])).status == 0
    manifest, records, _ = read_set(tmp_path / "out")
    assert (
        manifest.counts == {"examples": 0, "rejected": 0}
        and manifest.files == ()
        and len(records) == 0
    )
