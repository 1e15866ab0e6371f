"""Settings of a run.

``RunConfig`` is saved in the run and compared on resume: two runs with equal configs over the same corpus write the
same bytes. ``LaunchConfig`` holds what may differ between launches of one run (ranks, workers, folders).
"""

from lrs3_loader.config.automatic import (
    demo_defaults,
    inherit_auto_values,
    resolve,
)
from lrs3_loader.config.flag_types import (
    OptionalPlace,
    Place,
    rarely,
)
from lrs3_loader.config.launch import (
    LaunchConfig,
    OffsetLimits,
    WorkerConfig,
)
from lrs3_loader.config.run import (
    VIDEO_QUALITIES,
    CorpusConfig,
    DecodeConfig,
    FaceConfig,
    Fit,
    LandmarkConfig,
    Layout,
    MediaConfig,
    PlanConfig,
    QualityConfig,
    RegressionConfig,
    RunConfig,
    SpeakingConfig,
    SpeechConfig,
)
from lrs3_loader.config.saved import (
    as_json,
    upgrade_saved,
    with_current_flags,
)

__all__ = [
    "VIDEO_QUALITIES",
    "CorpusConfig",
    "DecodeConfig",
    "FaceConfig",
    "Fit",
    "LandmarkConfig",
    "LaunchConfig",
    "Layout",
    "MediaConfig",
    "OffsetLimits",
    "OptionalPlace",
    "Place",
    "PlanConfig",
    "QualityConfig",
    "RegressionConfig",
    "RunConfig",
    "SpeakingConfig",
    "SpeechConfig",
    "WorkerConfig",
    "as_json",
    "demo_defaults",
    "inherit_auto_values",
    "rarely",
    "resolve",
    "upgrade_saved",
    "with_current_flags",
]
