"""The checkpoints of a model, found by their globs, put in order and loaded before a graph is
built.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import posixpath
from collections.abc import Sequence
from typing import Any

from transforms.core.errors import InputError
from transforms.extraction.worker.model import Model, choose_threads, localize
from transforms.models import architectures, checkpoint_files, checkpoint_info, checkpoints
from transforms.models.checkpoint_info import CheckpointInfo
from transforms.models.checkpoints import Checkpoints, ModelSpec
from transforms.models.config import ModelConfig
from transforms.storage import filesystems, globs, manifests
from transforms.storage.feature_set_checks import usable_rate


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """The checkpoints of a model, loaded once in this process.

    Attributes:
        config: what was asked for.
        model: what a graph carries to its workers.
        loaded: the loaded checkpoints; a graph that runs in this process shares them while this
            object lives.
        infos: file, step and learning rate of each checkpoint, in order.
        learning_rates: η of each checkpoint, from the configuration or its optimizer; None where
            neither knows it.
        settings: what the fingerprint is made of.
        fingerprint: identity of checkpoints, layer, loss and bias.
    """

    config: ModelConfig
    model: Model
    loaded: Checkpoints
    infos: tuple[CheckpointInfo, ...]
    learning_rates: tuple[float | None, ...]
    settings: dict[str, Any]
    fingerprint: str

    @property
    def checkpoint_names(self) -> tuple[str, ...]:
        """The names of the checkpoints' files, in order."""
        return tuple(posixpath.basename(info.path) for info in self.infos)

    def usable_rates(self) -> tuple[float, ...]:
        """Returns the learning rates, as scoring needs them.

        Raises:
            InputError: one of them is unknown or cannot weigh a checkpoint.
        """
        pairs = zip(self.learning_rates, self.checkpoint_names, strict=True)
        return tuple(usable_rate(rate, name) for rate, name in pairs)


def find_checkpoints(patterns: str | Sequence[str]) -> tuple[list[str], bool]:
    """Finds checkpoints by paths, prefixes and globs.

    Returns:
        Their paths, and whether the patterns give their order.

    Raises:
        InputError: a pattern matches nothing, or two match the same checkpoint.
    """
    split = globs.split_patterns(patterns) if isinstance(patterns, str) else list(patterns)
    paths: list[str] = []
    for pattern in split:
        matches = _match(pattern)
        repeated = [path for path in matches if path in paths]
        if repeated:
            raise InputError(f"`checkpoints` names {repeated[0]} twice: name each checkpoint once")
        paths += matches
    if not paths:
        raise InputError(
            "`checkpoints` is empty: give .keras or .weights.h5 files, or prefixes of TensorFlow "
            "checkpoints"
        )
    return paths, not any(map(globs.is_glob, split))


def _match(pattern: str) -> list[str]:
    try:
        files = [
            match.path for glob in (pattern, f"{pattern}.index") for match in globs.match(glob)
        ]
    except (*filesystems.STORE_ERRORS, ValueError) as error:
        raise InputError(
            f"`checkpoints={pattern!r}` cannot be read: {filesystems.describe_error(error)}"
        ) from error
    paths = checkpoint_files.group_paths(files)
    if not paths:
        raise InputError(
            f"`checkpoints={pattern!r}` matches no checkpoint: expected .keras or .weights.h5 "
            "files, or a TensorFlow checkpoint's prefix"
        )
    return paths


def load_model(config: ModelConfig, rates_needed: bool = False) -> LoadedModel:
    """Finds, orders, loads and fingerprints the checkpoints of a configuration.

    Args:
        config: what is asked for.
        rates_needed: whether every checkpoint must have a usable learning rate, as scoring needs.

    Raises:
        InputError: some of it cannot be used.
    """
    paths, keep_order = find_checkpoints(config.checkpoints)
    spec = ModelSpec(
        tuple(paths),
        config.model,
        config.imports,
        config.layer,
        config.loss,
        config.include_bias,
        config.output_name,
        config.per_token,
    )
    choose_threads(len(paths))
    architectures.import_modules(config.imports)
    local = localize(spec)
    stored = dict(zip(local.checkpoints, paths, strict=True))
    infos = checkpoint_info.order(
        [checkpoint_info.inspect(path) for path in local.checkpoints], keep_order
    )
    spec = dataclasses.replace(spec, checkpoints=tuple(stored[info.path] for info in infos))
    rates = _learning_rates(config, infos, rates_needed)
    per_machine = config.share_checkpoints == "machine"
    model = Model(spec, tuple(info.digest for info in infos), per_machine)
    loaded = model.acquire()
    settings = _settings(config, loaded, infos, localize(spec).model)
    fingerprint = manifests.fingerprint(settings)
    return LoadedModel(config, model, loaded, tuple(infos), rates, settings, fingerprint)


def _learning_rates(
    config: ModelConfig, infos: Sequence[CheckpointInfo], needed: bool
) -> tuple[float | None, ...]:
    own = (info.learning_rate for info in infos)
    rates = tuple(
        config.learning_rates
        or (rate if rate is not None and math.isfinite(rate) else None for rate in own)
    )
    names = [posixpath.basename(info.path) for info in infos]
    if len(rates) != len(infos):
        raise InputError(
            f"`learning_rates` has {len(rates)} numbers, there are {len(infos)} checkpoints "
            f"({', '.join(names)}): give one for each, in this order"
        )
    if needed or config.learning_rates:
        for rate, name in zip(rates, names, strict=True):
            usable_rate(rate, name)
    return rates


def _settings(
    config: ModelConfig,
    loaded: Checkpoints,
    infos: Sequence[CheckpointInfo],
    architecture: str | None,
) -> dict[str, Any]:
    """Returns what identifies a model; a file of its `architecture` by its content."""
    model = architecture
    if architecture and architecture.endswith((".keras", ".json")):
        model = hashlib.sha256(filesystems.read(architecture)).hexdigest()
    return {
        "model": model,
        "checkpoints": [
            {"name": posixpath.basename(info.path), "sha256": info.digest} for info in infos
        ],
        "layer": checkpoints.base_name(loaded.layer),
        "loss": loaded.loss.description,
        "include_bias": config.include_bias,
        **({"output": loaded.output} if loaded.output is not None else {}),
        **({"per_token": True} if config.per_token else {}),
    }
