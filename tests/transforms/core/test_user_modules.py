"""A user's module with the name of one of this project's packages gets an error that says so."""

from __future__ import annotations

import pathlib

import pytest

from tests.conftest import Tiny
from transforms.core.errors import InputError
from transforms.core.user_modules import OWN_PACKAGES, name_clash

ROOT = pathlib.Path(__file__).parents[3]


def test_the_names_are_those_of_the_packages_that_are_installed() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(OWN_PACKAGES) == packages - {"benchmarks", "templates", "tests"}


@pytest.mark.parametrize("module", ["pipeline", "transforms", "transforms.parsing"])
def test_a_clash_is_explained(module: str) -> None:
    root = module.split(".")[0]
    assert f"tracin-beam's own package {root} comes before a module of yours" in name_clash(module)


@pytest.mark.parametrize("module", ["mine", "mine.transforms", "pipelines", ""])
def test_other_names_are_free(module: str) -> None:
    assert name_clash(module) == ""


@pytest.mark.parametrize("name", ["transforms:parse", "pipeline:parse", "transforms.mine:parse"])
def test_a_parse_function_of_such_a_module(name: str) -> None:
    from transforms.examples.format import resolve_function

    with pytest.raises(InputError, match=r"own package .* rename yours, or put it into a package"):
        resolve_function(name, "parse_fn")


@pytest.mark.parametrize("module", ["transforms", "pipeline", "transforms.mine"])
def test_custom_code_in_such_a_module(module: str) -> None:
    from transforms.models.architectures import import_modules

    with pytest.raises(InputError, match=rf"`imports={module}` .*own package .* rename yours"):
        import_modules([module])


def test_a_model_in_such_a_module(tiny: Tiny, tmp_path: pathlib.Path) -> None:
    import keras

    from transforms.models.checkpoints import ModelSpec, load

    weights = tmp_path / "a.weights.h5"
    keras.models.load_model(tiny.paths[0]).save_weights(weights)
    spec = ModelSpec((str(weights),), "pipeline:build")
    with pytest.raises(InputError, match=r"`model=pipeline:build`.*own package pipeline .* rename"):
        load(spec)
