"""Models of checkpoints: custom code that they need, and architectures that are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests import small
from tests.small import D_IN, C, L, logits_of, make_model, save
from transforms.core.errors import InputError
from transforms.models.checkpoints import ModelSpec, load


@keras.saving.register_keras_serializable("test_checkpoints")
class Odd(keras.metrics.Metric):
    def update_state(self, *args: Any, **kwargs: Any) -> None:
        pass

    def result(self) -> float:
        return 0.0


@keras.saving.register_keras_serializable("test_checkpoints")
class Twice(L.Layer):
    def call(self, inputs: Any) -> Any:
        return 2 * inputs


def forget(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delitem(keras.saving.get_custom_objects(), f"test_checkpoints>{name}")


def test_an_unknown_metric_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = make_model()
    model.compile("sgd", "mse", metrics=[Odd()])
    path = save(model, tmp_path / "m.keras")
    forget(monkeypatch, "Odd")
    assert load(ModelSpec((path,))).loss.task == "regression"
    model.save_weights(tmp_path / "m.weights.h5")
    assert load(ModelSpec((str(tmp_path / "m.weights.h5"),), model=path)).loss.task == "regression"


def test_custom_code_is_imported_or_missed_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, x: np.ndarray
) -> None:
    model = keras.Sequential([keras.Input((D_IN,)), Twice(), L.Dense(C)])
    model.compile(loss="mse")
    path = save(model, tmp_path / "m.keras")
    expected = model.predict(x, verbose=0)
    forget(monkeypatch, "Twice")
    with pytest.raises(InputError, match=r"m.keras needs the custom object .*Twice.*`imports`"):
        load(ModelSpec((path,)))
    (tmp_path / "mine_for_test.py").write_text(
        "import keras\n@keras.saving.register_keras_serializable('test_checkpoints')\n"
        "class Twice(keras.layers.Layer):\n    def call(self, inputs):\n        return 2 * inputs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = load(ModelSpec((path,), imports=("mine_for_test",)))
    np.testing.assert_allclose(logits_of(found, x), expected, rtol=1e-5, atol=1e-6)
    sys.modules.pop("mine_for_test")
    with pytest.raises(InputError, match="`imports=not_a_module_at_all` cannot be imported"):
        load(ModelSpec((path,), imports=("not_a_module_at_all",)))


def test_a_lambda_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((D_IN,)), L.Lambda(lambda v: v + 1), L.Dense(C)])
    path = save(model, tmp_path / "m.keras")
    with pytest.raises(InputError, match=r"Lambda.*safe mode"):
        load(ModelSpec((path,), loss="mse"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec(()), "No checkpoint given"),
        (ModelSpec(("m.weights.h5",)), "holds weights alone; pass `model`"),
        (ModelSpec(("m.weights.h5",), model="small"), "not an architecture"),
        (ModelSpec(("m.weights.h5",), model="gone.keras"), "gone.keras` does not exist"),
        (ModelSpec(("m.weights.h5",), model="m.weights.json"), "does not exist"),
        (ModelSpec(("m.weights.h5",), model=f"{__name__}:nothing"), "has no function nothing"),
        (
            ModelSpec(("m.weights.h5",), model="sys:getrecursionlimit"),
            "gives a int, expected a Keras model",
        ),
        (
            ModelSpec(("m.weights.h5",) * 2, model=f"{small.__name__}:build_once", loss="mse"),
            "returned the same model twice",
        ),
        (
            ModelSpec(("m.keras",), layer="hidden"),
            "`layer=hidden` is not the last dense layer of .*, which is layer head.*hidden, head",
        ),
    ],
)
def test_refused_specs(
    spec: ModelSpec,
    message: str,
    trained: keras.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(trained, tmp_path / "m.keras")
    trained.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(InputError, match=message) as caught:
        load(spec)
    assert "\n" not in str(caught.value)
