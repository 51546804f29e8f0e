"""A published model in plain NumPy, from its file's own tensors: what the Keras one must say, too.

Written from the networks' descriptions and not from `rle_tf.models`, in double precision, so that a
mistake in either shows as a difference.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rle_tf.estimator import PoseEstimator
from rle_tf.geometry import KNOWN_LOG_SIGMA

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Parity:
    """Largest differences between Keras and NumPy, on one random image; relative to a value where
    that is above 1.

    Attributes:
        mu, sigma: Of the regressor's outputs, in shares of the crop.
        log_prob: Of the flow's log density (in 3D of both flows) of a hundred residuals.
    """

    mu: float
    sigma: float
    log_prob: float


def compare(state: State, estimator: PoseEstimator, layout: str) -> Parity:
    """How far an estimator is from the state dict that it was filled with.

    Args:
        state: Without `module.`.
        layout: `rle_tf.checkpoints.Published.layout`.
    """
    state = {key: np.asarray(value, np.float64) for key, value in state.items()}
    regressor = estimator.regressor
    height, width = regressor.input_shape[1:3]
    rng = np.random.default_rng(0)
    image = rng.uniform(-0.5, 0.55, (1, height, width, 3)).astype("float32")
    found = {key: np.asarray(value) for key, value in regressor(image, training=False).items()}
    mu, sigma = regress(state, image, layout, *found["mu"].shape[1:])
    known = found["log_sigma"] == np.float32(KNOWN_LOG_SIGMA)  # where there is no root_sigma
    found["sigma"] = np.where(known, sigma, np.exp(found["log_sigma"]))
    log_prob = 0.0
    for flow in estimator.flows:
        residual = rng.normal(size=(100, flow.dims)) * 3
        ours = flow.log_prob(residual.astype("float32")).numpy()
        theirs = flow_log_prob(state, _flow_prefix(state, flow.dims), residual)
        log_prob = np.maximum(log_prob, _off(ours, theirs))  # NaN stays
    return Parity(_off(found["mu"], mu), _off(found["sigma"], sigma), float(log_prob))


def _off(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(found - expected) / np.maximum(np.abs(expected), 1)).max())


def regress(
    state: State, image: np.ndarray, layout: str, joints: int, dims: int
) -> tuple[np.ndarray, np.ndarray]:
    """mu and sigma (B, K, D) of images (B, H, W, 3), the origin of mu in the crop's centre."""
    if layout == "mmpose":
        head = "head" if "head.fc.weight" in state else "keypoint_head"
        features = _features(state, "backbone.", image)
        output = features @ state[f"{head}.fc.weight"].T + state[f"{head}.fc.bias"]
        output = output.reshape(-1, joints, 4)
        return output[..., :2] - 0.5, _sigmoid(output[..., 2:])
    features = _features(state, "preact.", image)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    mu = (features / norm) @ state["fc_coord.linear.weight"].T + state["fc_coord.linear.bias"]
    mu = mu.reshape(-1, joints, dims)
    if dims == 3:
        mu[..., 2] -= mu[:, :1, 2]
    sigma = "fc_sigma.linear" if "fc_sigma.linear.weight" in state else "fc_sigma"
    raw = features @ state[f"{sigma}.weight"].T + state[f"{sigma}.bias"]
    return mu, _sigmoid(raw).reshape(-1, joints, dims)


def flow_log_prob(state: State, prefix: str, residual: np.ndarray) -> np.ndarray:
    """(N,) log densities of residuals (N, D) under a RealNVP with base N(0, I)."""

    def net(kind: str, index: int, x: np.ndarray) -> np.ndarray:
        for place in (0, 2, 4):
            key = f"{prefix}{kind}.{index}.{place}"
            x = x @ state[f"{key}.weight"].T + state[f"{key}.bias"]
            if place < 4:
                x = np.where(x > 0, x, 0.01 * x)
        return x

    dims = residual.shape[1]
    couplings = _count(state, rf"{re.escape(prefix)}s\.(\d+)\.")
    z, log_det = residual, np.zeros(len(residual))
    for index in reversed(range(couplings)):
        # The last coordinate passes an even coupling, the others an odd one.
        kept = np.arange(dims) == dims - 1
        kept = kept if index % 2 == 0 else ~kept
        scale = np.where(kept, 0, np.tanh(net("s", index, z * kept)))
        shift = np.where(kept, 0, net("t", index, z * kept))
        z = (z - shift) * np.exp(-scale)
        log_det -= scale.sum(axis=1)
    return log_det - (z**2).sum(axis=1) / 2 - dims * np.log(2 * np.pi) / 2


def _flow_prefix(state: State, dims: int) -> str:
    ends = (f"flow{dims}d.s.0.0.weight", "flow.s.0.0.weight", "flow_model.s.0.0.weight")
    return next(key for end in ends for key in state if key.endswith(end)).removesuffix(
        "s.0.0.weight"
    )


def _features(state: State, prefix: str, image: np.ndarray) -> np.ndarray:
    """(B, C) means of the last maps of a ResNet or a MobileNetV2."""
    state = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    maps = np.asarray(image, np.float64)
    maps = _mobilenet_v2(state, maps) if "conv2.conv.weight" in state else _resnet(state, maps)
    return maps.mean(axis=(1, 2))


def _resnet(state: State, x: np.ndarray) -> np.ndarray:
    x = np.maximum(_norm(state, "bn1", _conv(x, state["conv1.weight"], 2)), 0)
    x = _windows(x, 3, 2, -np.inf).max(axis=(-2, -1))
    for stage in (1, 2, 3, 4):
        for block in range(_count(state, rf"layer{stage}\.(\d+)\.")):
            name = f"layer{stage}.{block}"
            strides = {"conv1": 1, "conv2": 1, "conv3": 1}
            if stage > 1 and block == 0:
                strides["conv2" if f"{name}.conv3.weight" in state else "conv1"] = 2
            y = x
            for conv in [conv for conv in strides if f"{name}.{conv}.weight" in state]:
                y = np.maximum(y, 0) if conv != "conv1" else y
                y = _conv(y, state[f"{name}.{conv}.weight"], strides[conv])
                y = _norm(state, f"{name}.bn{conv[-1]}", y)
            if f"{name}.downsample.0.weight" in state:
                stride = max(strides.values())
                x = _conv(x, state[f"{name}.downsample.0.weight"], stride)
                x = _norm(state, f"{name}.downsample.1", x)
            x = np.maximum(x + y, 0)
    return x


def _mobilenet_v2(state: State, x: np.ndarray) -> np.ndarray:
    def module(x, name, stride=1):
        return _norm(state, f"{name}.bn", _conv(x, state[f"{name}.conv.weight"], stride))

    x = np.clip(module(x, "conv1", 2), 0, 6)
    for stage, first in enumerate((1, 2, 2, 2, 1, 2, 1), start=1):
        for block in range(_count(state, rf"layer{stage}\.(\d+)\.")):
            name = f"layer{stage}.{block}.conv"
            count = _count(state, rf"{re.escape(name)}\.(\d+)\.")
            y = x
            for index in range(count):
                stride = first if block == 0 and index == count - 2 else 1
                y = module(y, f"{name}.{index}", stride)
                y = np.clip(y, 0, 6) if index < count - 1 else y
            x = x + y if x.shape == y.shape else y
    return np.clip(module(x, "conv2"), 0, 6)


def _count(state: State, pattern: str) -> int:
    return 1 + max(int(match[1]) for key in state if (match := re.match(pattern, key)))


def _windows(x: np.ndarray, size: int, stride: int, fill: float) -> np.ndarray:
    """(B, H, W, C) -> (B, h, w, C, size, size), padded on all sides alike."""
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return windows[:, ::stride, ::stride]


def _conv(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    windows = _windows(x, weight.shape[-1], stride, 0.0)
    if weight.shape[1] == 1 and x.shape[-1] == len(weight) > 1:  # a filter for each channel
        return np.einsum("bhwcij,cij->bhwc", windows, weight[:, 0])
    return np.tensordot(windows, weight, axes=((3, 4, 5), (1, 2, 3)))


def _norm(state: State, name: str, x: np.ndarray) -> np.ndarray:
    scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + 1e-5)
    return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
