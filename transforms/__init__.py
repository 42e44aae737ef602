"""Training-data influence (TracIn) as Apache Beam transforms, and the pure functions behind them.

A graph begins with `ExtractFeatures` or `ReadFeatureSet` and goes on with `ScoreInfluence` and
`WriteInfluence`, or with `AuditLabels` and `WriteAudit`. Frozen configurations carry the settings.
An unusable setting, file or record raises `InputError`, whose `field` is the setting to change.

Names are loaded when they are first used, so that importing this package is cheap and scoring
needs no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transforms.audit.config import AuditConfig as AuditConfig
    from transforms.audit.judge import AuditLabels as AuditLabels
    from transforms.audit.write import WriteAudit as WriteAudit
    from transforms.core.errors import InputError as InputError
    from transforms.core.features import Features as Features
    from transforms.examples.config import ExampleConfig as ExampleConfig
    from transforms.extraction.config import ExtractionConfig as ExtractionConfig
    from transforms.extraction.load_model import load_model as load_model
    from transforms.extraction.prepare import ExtractFeatures as ExtractFeatures
    from transforms.influence.config import InfluenceReportConfig as InfluenceReportConfig
    from transforms.influence.config import ScoringConfig as ScoringConfig
    from transforms.influence.rows import read_rows as read_rows
    from transforms.influence.score import ScoreInfluence as ScoreInfluence
    from transforms.influence.write import WriteInfluence as WriteInfluence
    from transforms.models.config import ModelConfig as ModelConfig
    from transforms.scoring.influence import Scoring as Scoring
    from transforms.scoring.influence import canonical_scores as canonical_scores
    from transforms.scoring.influence import self_influence as self_influence
    from transforms.scoring.search.for_arrays import top_k as top_k
    from transforms.storage.feature_set import FeatureSet as FeatureSet
    from transforms.storage.read_feature_set import ReadFeatureSet as ReadFeatureSet
    from transforms.storage.read_feature_set import read_feature_set as read_feature_set
    from transforms.vectors.config import ProjectionConfig as ProjectionConfig
    from transforms.vectors.files import ExportVectors as ExportVectors

# By public name, in the order in which data meets them, the module that defines it.
_MODULES = {
    "ModelConfig": "models.config",
    "ExampleConfig": "examples.config",
    "ExtractionConfig": "extraction.config",
    "load_model": "extraction.load_model",
    "ExtractFeatures": "extraction.prepare",
    "ReadFeatureSet": "storage.read_feature_set",
    "read_feature_set": "storage.read_feature_set",
    "FeatureSet": "storage.feature_set",
    "Features": "core.features",
    "ScoringConfig": "influence.config",
    "ScoreInfluence": "influence.score",
    "InfluenceReportConfig": "influence.config",
    "WriteInfluence": "influence.write",
    "read_rows": "influence.rows",
    "AuditConfig": "audit.config",
    "AuditLabels": "audit.judge",
    "WriteAudit": "audit.write",
    "ProjectionConfig": "vectors.config",
    "ExportVectors": "vectors.files",
    "Scoring": "scoring.influence",
    "self_influence": "scoring.influence",
    "canonical_scores": "scoring.influence",
    "top_k": "scoring.search.for_arrays",
    "InputError": "core.errors",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
