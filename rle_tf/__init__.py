"""rle_tf: human pose regression with residual log-likelihood estimation, for Keras 3.

    from rle_tf import COCO17, PoseEstimator, RealNVP, RLELoss, build_regressor

    regressor = build_regressor("resnet50", COCO17, dims=2, image_size=(256, 192))
    estimator = PoseEstimator(regressor, RLELoss(RealNVP(2)))
    estimator.compile("adam")
    estimator.fit(batches_of_image_and_target)

Names are imported when they are first used, so that `import rle_tf` does not wait for TensorFlow.
"""

import importlib
import os

# TensorFlow looks once, when it is first imported, and leaves these kernels off on some processors.
# On one with AVX2 and no AVX-512 they made a ResNet-50's training step a sixth shorter
# (benchmarks/README.md).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"

_HOMES = {
    "COCO17": "skeletons",
    "H36M18": "skeletons",
    "LSP14": "skeletons",
    "MPII16": "skeletons",
    "PERSON19": "skeletons",
    "Skeleton": "skeletons",
    "read_skeleton": "skeleton_file",
    "RLEError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "ModelError": "errors",
    "CocoSource": "data.coco",
    "H36mSource": "data.h36m",
    "LspSource": "data.lsp",
    "MpiiSource": "data.mpii",
    "MixSource": "data.mix",
    "MappedSource": "data.mix",
    "SyntheticSource": "data.synthetic",
    "Synthetic3DSource": "data.synthetic",
    "Augmentation": "data.augment",
    "CropFormat": "data.crops",
    "KeypointFormat": "data.lifting",
    "training_batches": "data.pipeline",
    "evaluation_batches": "data.pipeline",
    "screen_coordinates": "geometry",
    "build_backbone": "models.regressor",
    "build_regressor": "models.regressor",
    "build_lifter": "models.lifting",
    "RealNVP": "flow",
    "RLELoss": "losses",
    "L1Loss": "losses",
    "L2Loss": "losses",
    "DensityLoss": "losses",
    "DirectLoss": "losses",
    "HeatmapLoss": "losses",
    "MapLoss": "losses",
    "PoseEstimator": "estimator",
    "RunConfig": "config",
    "load_config": "config",
    "train": "training",
    "load_regressor": "run_folder",
    "evaluate": "evaluation",
    "predict_poses": "evaluation",
    "export_savedmodel": "export.savedmodel",
    "export_litert": "export.litert",
    "load": "prediction",
    "calibrate_run": "calibration",
    "draw_poses": "drawing",
    "draw_views": "drawing",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'rle_tf' has no attribute '{name}'")
    return vars(importlib.import_module(f"rle_tf.{_HOMES[name]}"))[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
