"""Records of positions add up to Keras's own gradient of each example's loss."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import Outcome, example, write_records
from tests.small import save
from tests.stage_one import assert_same_features, extract_set, read_rejects, read_set
from tests.taggers import MODELS, SPARSE, C, L, N, P, data, dense_tagger, head_of, tagger
from transforms.core.errors import InputError
from transforms.core.ids import example_of
from transforms.extraction.feature_files.part import FileLimits
from transforms.extraction.tuning import ExtractionTuning
from transforms.models.checkpoints import ModelSpec, load

Run = Callable[..., Outcome]


@pytest.fixture
def extract(tracin: Run, tmp_path: pathlib.Path) -> Callable[..., Outcome]:
    """Runs `tracin features` on what `write` has written, into `tmp_path/output`."""

    def features(output: str, *words: str) -> Outcome:
        return tracin(
            "features",
            f"--examples={tmp_path / 'examples'}",
            f"--checkpoints={tmp_path / 'm.keras'}",
            f"--output={tmp_path / output}",
            "--input_keys=x",
            "--id_key=id",
            "--learning_rates=1",
            "--per_token",
            "--runner=FnApiRunner",
            *words,
        )

    return features


def write(
    directory: pathlib.Path, x: np.ndarray, y: np.ndarray | None, ids: Sequence[int] = range(N)
) -> None:
    """Writes examples `s0`, `s1`, … of these inputs and labels."""
    fields = [
        {"x": x[i], "id": f"s{k}", **({} if y is None else {"label": y[i]})}
        for i, k in enumerate(ids)
    ]
    write_records(directory / "examples", [example(**one) for one in fields])


@pytest.fixture
def run(extract: Callable[..., Outcome], tmp_path: pathlib.Path) -> Callable[..., Outcome]:
    """Writes a model and examples and extracts them."""

    def features(
        model: keras.Model, x: np.ndarray, y: np.ndarray | None, *words: str, output: str = "out"
    ) -> Outcome:
        write(tmp_path, x, y)
        save(model, tmp_path / "m.keras")
        return extract(output, *words)

    return features


@pytest.mark.parametrize("name", MODELS)
def test_records_of_an_example_add_up_to_the_gradient_of_its_compiled_loss(
    name: str, run: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    build, loss = MODELS[name]
    model = build()
    x, y = data(model, loss)
    model.compile("sgd", loss)
    # Once trained, so that nothing is at its first value.
    model.fit(x, y, epochs=2, batch_size=4, verbose=0)
    assert run(model, x, y, "--batch_size=3").status == 0
    manifest, records, raw = read_set(tmp_path / "out")
    assert (
        manifest.per_token
        and manifest.counts["examples"] == N
        and manifest.counts["positions"] == len(records)
    )
    dense = head_of(model)
    sizes = []
    for i in range(N):
        with tf.GradientTape() as tape:
            value = model.loss(tf.constant(y[i : i + 1]), model(x[i : i + 1], training=False))
        kernel, bias = tape.gradient(value, [dense.kernel.value, dense.bias.value])
        rows = [
            r
            for r, record in enumerate(records.example_ids.tolist())
            if example_of(record) == f"s{i}".encode()
        ]
        sizes.append(len(rows))
        summed = sum(np.outer(records.activations[r, 0], records.loss_grads[r, 0]) for r in rows)
        np.testing.assert_allclose(summed[:-1], kernel, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(summed[-1], bias, rtol=2e-4, atol=2e-6)
        assert np.abs(kernel).max() > 1e-4
        assert {raw[r]["offset"].int64_list.value[0] for r in rows} == {i}
    if name in ("masked", "summed", "softmax layer", "time distributed", "binary"):
        assert sizes == [5, 4, 3, 2, 1, 5, 4, 2]
        assert records.example_ids.tolist()[5:9] == [b"s1@0", b"s1@1", b"s1@2", b"s1@3"]
    if name == "picture":
        assert sizes == [6] * N and records.labels.ravel().tolist() == y.ravel().tolist()


def test_scores_of_pairs_of_positions_add_up_to_the_influence_of_examples(
    run: Callable[..., Outcome], tracin: Run, tmp_path: pathlib.Path
) -> None:
    model = tagger()
    x, y = data(model, SPARSE())
    model.compile(keras.optimizers.SGD(0.1), SPARSE(from_logits=True))
    assert run(model, x, y).status == 0
    sets = (f"--train_features={tmp_path / 'out'}", f"--test_features={tmp_path / 'out'}")
    assert (
        tracin(
            "score", *sets, "--k=100", f"--output={tmp_path / 'scores'}", "--runner=FnApiRunner"
        ).status
        == 0
    )
    totals = np.zeros((N, N))
    for line in (tmp_path / "scores" / "influence-00000.jsonl").read_text().splitlines():
        row = json.loads(line)
        i = int(row["test_id"].split("@")[0][1:])
        for other in row["proponents"] + row["opponents"]:
            totals[i, int(other["train_id"].split("@")[0][1:])] += other["score"]
    dense = head_of(model)
    grads = []
    for i in range(N):
        with tf.GradientTape() as tape:
            value = model.loss(y[i : i + 1], model(x[i : i + 1], training=False))
        grads.append(
            np.concatenate(
                [
                    g.numpy().ravel()
                    for g in tape.gradient(value, [dense.kernel.value, dense.bias.value])
                ]
            )
        )
    np.testing.assert_allclose(totals, np.array(grads) @ np.array(grads).T, rtol=1e-3, atol=1e-6)


def test_labels_at_masked_positions_do_not_matter_and_a_wrong_one_elsewhere_rejects_its_example(
    run: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    model = tagger()
    x, y = data(model, SPARSE())
    model.compile("sgd", SPARSE(from_logits=True))
    assert run(model, x, y, output="clean").status == 0
    padded = np.where(x == 0, -100, y)
    assert run(model, x, padded, output="padded").status == 0
    assert_same_features(read_set(tmp_path / "padded")[1], read_set(tmp_path / "clean")[1])
    padded[1, 2] = 7
    x[4] = 0
    outcome = run(model, x, padded, "--max_rejected_fraction=0.5", output="wrong")
    assert outcome.status == 0 and "6 examples of 21 positions" in outcome.out
    rejected = {
        reject.example_id: (reject.reason, reject.detail)
        for reject in read_rejects(tmp_path / "wrong")
    }
    assert rejected == {
        "s1": ("bad-label", "label 7 is outside 0..2 (position 2)"),
        "s4": ("no-positions", "all its positions are masked or ignored by the loss"),
    }
    assert not [
        one
        for one in read_set(tmp_path / "wrong")[1].example_ids.tolist()
        if one.startswith((b"s1@", b"s4@"))
    ]


def test_an_infinite_position_rejects_the_whole_example(
    run: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    model = tagger(mask_zero=False)
    x, y = data(model, SPARSE())
    model.compile("sgd", SPARSE(from_logits=True))
    table = model.layers[0]
    values = table.get_weights()[0]
    x[x == 10] = 9
    x[2, 4] = 10
    values[10] = np.nan
    table.set_weights([values])
    assert run(model, x, y, "--max_rejected_fraction=0.5").status == 0
    assert [(one.example_id, one.reason) for one in read_rejects(tmp_path / "out")] == [
        ("s2", "non-finite-features")
    ]
    assert len(read_set(tmp_path / "out")[1]) == (N - 1) * P


def test_predicted_labels_are_those_of_each_position(
    run: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    model = tagger()
    x, _ = data(model, SPARSE())
    model.compile("sgd", SPARSE(from_logits=True))
    assert run(model, x, None, "--labels=predicted").status == 0
    records = read_set(tmp_path / "out")[1]
    expected = model.predict(x, verbose=0).argmax(-1)[x != 0]
    assert (
        records.labels.ravel().tolist() == expected.tolist() == records.predictions.ravel().tolist()
    )


def test_batches_and_copies_change_no_bit(
    run: Callable[..., Outcome], extract: Callable[..., Outcome], tmp_path: pathlib.Path
) -> None:
    model = dense_tagger()
    x, y = data(model, SPARSE())
    model.compile("sgd", SPARSE(from_logits=True))
    assert run(model, x, y, "--batch_size=2").status == 0
    expected = read_set(tmp_path / "out")
    assert extract("other", "--batch_size=64").status == 0
    assert_same_features(read_set(tmp_path / "other")[1], expected[1])
    # Two changed, the others copied with all their positions, in order.
    order = [5, 3, 0, 1, 2, 4, 7, 6]
    x, y = x[order], y[order]
    y[0, 0] = (y[0, 0] + 1) % C
    y[3, 1] = (y[3, 1] + 1) % C
    write(tmp_path, x, y, order)
    assert extract("computed").status == 0
    outcome = extract("copied", f"--base={tmp_path / 'out'}")
    assert outcome.out.splitlines()[-1].endswith(": read 2 examples, copied 6 that did not change")
    computed, copied = read_set(tmp_path / "computed"), read_set(tmp_path / "copied")
    assert copied[0].counts == computed[0].counts
    assert_same_features(copied[1], computed[1])
    positions: dict[bytes, list[int]] = {}
    for one in copied[1].example_ids.tolist():
        positions.setdefault(example_of(one), []).append(int(one.split(b"@")[1]))
    assert list(map(len, positions.values())) != [1] * N
    assert all(indices == list(range(len(indices))) for indices in positions.values())


def test_a_file_of_features_ends_between_examples(
    tmp_path: pathlib.Path,
) -> None:
    model = tagger()
    x, y = data(model, SPARSE())
    model.compile("sgd", SPARSE(from_logits=True))
    write(tmp_path, x, y)
    save(model, tmp_path / "m.keras")
    extract_set(
        [tmp_path / "m.keras"],
        tmp_path / "examples",
        tmp_path / "out",
        tuning=ExtractionTuning(file_limits=FileLimits(records=4)),
        input_keys=("x",),
        per_token=True,
    )
    manifest, records, _ = read_set(tmp_path / "out")
    # Of 5, 4, 3, 2, 1, 5, 4 and 2 positions.
    assert [file.count for file in manifest.files] == [5, 4, 5, 6, 4, 2]
    assert manifest.counts == {"examples": N, "rejected": 0, "positions": len(records)}


REFUSED: dict[str, tuple[Callable[[], keras.Model], bool, str]] = {
    "setting missing": (
        tagger,
        False,
        "sum of outer products over the positions; expected one vector per example, or `per_token`",
    ),
    "setting too many": (
        lambda: keras.Sequential([keras.Input((4,)), L.Dense(C, name="head")]),
        True,
        r"head \(Dense\) works on one vector per example, shape \(None, 4\); leave `per_token` out",
    ),
    "mask lost": (
        lambda: tagger(L.Dense(C, name="head"), L.Reshape((P, C), name="same")),
        True,
        r"layer same \(Reshape\) stands after the last dense layer and takes the mask away",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: pathlib.Path) -> None:
    build, per_token, message = REFUSED[name]
    model = build()
    model.compile("sgd", SPARSE(from_logits=True))
    with pytest.raises(InputError, match=message):
        load(ModelSpec((save(model, tmp_path / "m.keras"),), per_token=per_token))
