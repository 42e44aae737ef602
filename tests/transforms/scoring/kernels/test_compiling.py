"""Machine code: never older than any source that it was made of, and not kept without bound."""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numba
import pytest

import transforms
from transforms.scoring.kernels.compiling import (
    KEPT,
    SOURCES,
    cache_directory,
    compiled,
    source_digest,
)

PACKAGE = pathlib.Path(transforms.__file__).parent

# A file that is never edited, whose function inlines a constant of `core.summation` through a
# function of `layout`; compiled as ours are, and as Numba does by itself.
CALLER = """
import numba
from transforms.scoring.kernels.compiling import compiled
from transforms.scoring.kernels.layout import count_parts

def count(n):
    return count_parts(n)

ours = compiled()(count)
numbas = numba.njit(cache=True)(count)
"""

PROGRAM = """
from transforms.scoring.kernels import caller
print(caller.ours(1000), caller.numbas(1000), sum(caller.ours.stats.cache_hits.values()))
"""


def test_an_edited_constant_of_another_file_is_seen(tmp_path: pathlib.Path) -> None:
    for name in ("core", "scoring"):
        shutil.copytree(
            PACKAGE / name,
            tmp_path / "transforms" / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    (tmp_path / "transforms" / "__init__.py").touch()
    (tmp_path / "transforms" / "scoring" / "kernels" / "caller.py").write_text(CALLER)
    summation = tmp_path / "transforms" / "core" / "summation.py"
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def run() -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(number) for number in done.stdout.split()]

    assert run() == [3, 3, 0]
    assert run() == [3, 3, 1]
    edited, edits = re.subn(r"(?m)^PART = 352$", "PART = 100", summation.read_text())
    assert edits == 1
    summation.write_text(edited)
    # Numba by itself runs the machine code of the old constant.
    assert run() == [10, 3, 0]
    assert run() == [10, 3, 1]


def compiling_modules() -> list[pathlib.Path]:
    return [
        path
        for path in PACKAGE.rglob("*.py")
        if path.name != "compiling.py" and "kernels.compiling import" in path.read_text()
    ]


@pytest.mark.parametrize("path", compiling_modules(), ids=lambda path: path.name)
def test_every_source_of_compiled_code_is_in_the_digest(path: pathlib.Path) -> None:
    assert path in SOURCES
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = importlib.import_module(name)
    used = {
        used
        for value in vars(module).values()
        if isinstance(value, numba.core.registry.CPUDispatcher)
        for used in value.py_func.__code__.co_names
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transforms."):
            if used & {alias.asname or alias.name for alias in node.names}:
                source = PACKAGE.parent / (node.module.replace(".", "/") + ".py")
                assert source in SOURCES


def test_a_digest_depends_on_each_byte_and_on_file_names(tmp_path: pathlib.Path) -> None:
    one, other = tmp_path / "a.py", tmp_path / "b.py"
    one.write_text("X = 1")
    other.write_text("X = 1")
    digests = {source_digest([one]), source_digest([other]), source_digest([one, other])}
    one.write_text("X = 2")
    assert len(digests | {source_digest([one])}) == 4
    one.write_text("X = 1")
    assert source_digest([one]) in digests


def test_machine_code_goes_where_it_can_be_written(tmp_path: pathlib.Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.touch()
    digest = "0" * 32
    chosen = cache_directory([blocked, tmp_path / "user"], digest)
    assert chosen is not None and chosen.parent == tmp_path / "user" and chosen.is_dir()
    assert cache_directory([blocked], digest) is None


def test_old_machine_code_makes_room_and_nothing_else_does(tmp_path: pathlib.Path) -> None:
    (tmp_path / "somebody-elses").mkdir()
    (tmp_path / "tracin-kernels-notes").mkdir()
    made = []
    for i in range(KEPT + 3):
        directory = cache_directory([tmp_path], f"{i:032x}")
        assert directory is not None
        os.utime(directory, (i, i))
        made.append(directory)
        # Used again, so not the oldest.
        os.utime(made[0], (i + 0.5, i + 0.5))
    left = {path for path in made if path.exists()}
    assert left == {made[0], *made[-KEPT:]}
    assert (tmp_path / "somebody-elses").exists() and (tmp_path / "tracin-kernels-notes").exists()


def test_numbas_own_setting_is_as_before() -> None:
    before = numba.config.CACHE_DIR
    compiled()(lambda x: x)
    assert before == numba.config.CACHE_DIR
