"""Weights files: every variable gets its value from the file, or the file is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import small
from tests.small import D_IN, C, L, logits_of, make_model, save
from transforms.core.errors import InputError
from transforms.models.checkpoints import ModelSpec, load


def test_weights_files_give_the_same_logits(
    trained: keras.Model, x: np.ndarray, tmp_path: Path
) -> None:
    archive = save(trained, tmp_path / "m.keras")
    expected = logits_of(load(ModelSpec((archive,))), x)
    trained.save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.json").write_text(trained.to_json())
    tf.train.Checkpoint(model=trained, optimizer=trained.optimizer).write(
        str(tmp_path / "with-optimizer")
    )
    tf.train.Checkpoint(net=trained).save(str(tmp_path / "net"))
    tf.train.Checkpoint(classifier=trained, step=tf.Variable(3)).write(str(tmp_path / "other-name"))
    tf.train.Checkpoint(trained).write(str(tmp_path / "root"))
    for name in ("m.weights.h5", "with-optimizer", "net-1", "other-name", "root"):
        for model in (archive, str(tmp_path / "m.json"), f"{small.__name__}:build_small"):
            found = load(ModelSpec((str(tmp_path / name),), model=model))
            np.testing.assert_array_equal(logits_of(found, x), expected, err_msg=f"{name} {model}")
            assert found.loss.description == "SparseCategoricalCrossentropy()"


def test_an_adapted_normalization_is_restored(x: np.ndarray, tmp_path: Path) -> None:
    """Its constants are made from its variables, which a TensorFlow restore sets behind its
    back.
    """
    norm = L.Normalization()
    norm.adapt(x)
    model = keras.Sequential([keras.Input((D_IN,)), norm, L.Dense(C)])
    model.compile(loss="mse")
    tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
    (tmp_path / "m.json").write_text(
        keras.Sequential([keras.Input((D_IN,)), L.Normalization(), L.Dense(C)]).to_json()
    )
    found = load(ModelSpec((str(tmp_path / "c"),), model=str(tmp_path / "m.json"), loss="mse"))
    np.testing.assert_allclose(
        logits_of(found, x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_a_value_like_the_mark_counts_as_bound(trained: keras.Model, tmp_path: Path) -> None:
    """A diverged model holds NaN, an integer variable anything.

    Protects such files from being refused: loading must not raise.
    """
    for variable in trained.weights[:2]:
        variable.assign(keras.ops.full(variable.shape, np.nan))
    trained.save_weights(tmp_path / "m.weights.h5")
    load(ModelSpec((str(tmp_path / "m.weights.h5"),), model=f"{small.__name__}:build_small"))


def test_unbound_variables_are_named(trained: keras.Model, tmp_path: Path) -> None:
    trained.save_weights(tmp_path / "m.weights.h5")
    larger = keras.Sequential(
        [*make_model().layers[:-1], L.Dense(4, name="extra"), L.Dense(C, name="head")]
    )
    larger.build((None, D_IN))
    (tmp_path / "larger.json").write_text(larger.to_json())
    spec = {"model": str(tmp_path / "larger.json"), "loss": "mse"}
    with pytest.raises(InputError, match=r"m.weights.h5.*do(es)? not fit"):
        load(ModelSpec((str(tmp_path / "m.weights.h5"),), **spec))
    root = tf.train.Checkpoint(model=trained)
    root.write(str(tmp_path / "ckpt"))
    with pytest.raises(InputError, match="ckpt"):
        load(ModelSpec((str(tmp_path / "ckpt"),), **spec))
    tf.train.Checkpoint(hidden=trained.get_layer("hidden")).write(str(tmp_path / "part"))
    with pytest.raises(
        InputError,
        match=r"part holds no value for .*norm/gamma.* and .* more variables.* under hidden",
    ):
        load(ModelSpec((str(tmp_path / "part"),), model=f"{small.__name__}:build_small"))


def test_a_checkpoint_of_keras_2_is_recognised(trained: keras.Model, tmp_path: Path) -> None:
    old = tf.train.Checkpoint()
    old.__setattr__(
        "layer_with_weights-0", tf.train.Checkpoint(kernel=tf.Variable(tf.zeros([D_IN, 8])))
    )
    old.write(str(tmp_path / "old"))
    with pytest.raises(InputError, match="written by Keras 2"):
        load(ModelSpec((str(tmp_path / "old"),), model=f"{small.__name__}:build_small"))


def test_an_archive_with_a_missing_variable_is_refused(
    trained: keras.Model, tmp_path: Path
) -> None:
    path = Path(save(trained, tmp_path / "m.keras"))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(members["model.weights.h5"])
    with h5py.File(content, "r+") as weights:
        del weights["layers/dense_1/vars/1"]
    members["model.weights.h5"] = content.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    with pytest.raises(InputError, match=r"m.keras cannot be loaded"):
        load(ModelSpec((str(path),)))


def adapted() -> keras.Model:
    lookup = L.IntegerLookup(output_mode="multi_hot")
    lookup.adapt(np.array([[3], [5], [5], [9]]))
    return keras.Sequential([keras.Input((1,), dtype="int64"), lookup, L.Dense(C, name="head")])


def test_a_vocabulary_that_was_adapted(tmp_path: Path) -> None:
    """It is an asset of the archive, and not among the weights."""
    model = adapted()
    path = save(model, tmp_path / "m.keras")
    data = np.array([[3], [5], [9], [4]])
    found = load(ModelSpec((path,), loss="mse"))
    np.testing.assert_allclose(
        logits_of(found, data), model.predict(data, verbose=0), rtol=1e-5, atol=1e-6
    )
    model.save_weights(tmp_path / "m.weights.h5")
    same = load(
        ModelSpec((str(tmp_path / "m.weights.h5"),), model=f"{__name__}:adapted", loss="mse")
    )
    np.testing.assert_array_equal(logits_of(same, data), logits_of(found, data))
    with pytest.raises(
        InputError,
        match=r"m\.weights\.h5 holds weights alone, and the "
        r"vocabulary "
        r"of "
        r"integer_lookup.* "
        r"is "
        r"not "
        r"among them",
    ):
        load(ModelSpec((str(tmp_path / "m.weights.h5"),), model=path, loss="mse"))
