"""Packaging of rle-tf. The tests run with the newest versions; of TensorFlow's family, which breaks
most often, the lower bounds are the versions that they have passed with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "rle_tf/__init__.py").read_text())[1]

SERVE = ["fastapi>=0.115", "uvicorn>=0.32", "prometheus-client>=0.21"]
SERVING = ["tensorflow-serving-api>=2.19"]
ONNX = ["tf2onnx>=1.17", "onnxruntime>=1.20"]
OPENVINO = ["openvino>=2025.0"]
TORCH = ["torch>=2.7"]
TEST = [
    *SERVE,
    *SERVING,
    *ONNX,
    *OPENVINO,
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "opencv-python-headless>=4.9",
    "httpx>=0.27",
    "hypothesis>=6.100",
    "playwright>=1.49",
]

setup(
    name="rle-tf",
    version=VERSION,
    description="Human pose regression with residual log-likelihood estimation, for Keras 3",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The recipes travel with the package, so that `rle-tf demo` works from anywhere.
    # So does the model that predicts where none is named.
    packages=[
        *find_packages(include=["rle_tf", "rle_tf.*"]),
        "rle_tf.configs",
        "rle_tf.saved_models",
    ],
    package_dir={"rle_tf.configs": "configs", "rle_tf.saved_models": "saved_models"},
    package_data={
        "rle_tf.configs": ["*.yaml"],
        "rle_tf.saved_models": ["pose_small/*", "pose_small/1/**"],
        "rle_tf.server": ["page/*"],
    },
    install_requires=[
        "tensorflow>=2.21",
        "keras>=3.15",
        "tensorflow-probability>=0.25",
        "tf-keras>=2.21",  # tensorflow-probability 0.25 does not import without it
        "numpy>=1.26",
        "orjson>=3.9",
        "pycocotools>=2.0.8",
        "pydantic>=2.10",
        "ruamel.yaml>=0.18",
        "typer>=0.15",
        "rich>=13.9",
        "pillow>=11.0",
        "matplotlib>=3.9",
        "scipy>=1.14",
        "safetensors>=0.5",
        "h5py>=3.10",
        "tensorboard>=2.18",
        "ai-edge-litert>=2.0",
    ],
    extras_require={
        "serve": SERVE,  # rle-tf serve
        "serving": SERVING,  # rle-tf export --serving, the gRPC client
        "onnx": ONNX,  # rle-tf export --format onnx
        "openvino": OPENVINO,  # rle-tf export --format openvino
        "torch": TORCH,  # rle-tf import FILE.pth, rle-tf export --format torch
        # The comparators of benchmarks/ and of rle-tf benchmark.
        "benchmark": [*TORCH, *ONNX, *OPENVINO, "nncf>=3.0", "opencv-python-headless>=4.9"],
        "test": TEST,
        "dev": [*TEST, "ruff>=0.9"],
        "cuda": ["tensorflow[and-cuda]>=2.21"],
    },
    entry_points={"console_scripts": ["rle-tf = rle_tf.cli:main"]},
)
