"""Pretrained weights for a backbone: from the network or from a file, matched by name."""

import io
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import h5py
import keras
import numpy as np
import safetensors.numpy

from rle_tf.errors import ModelError
from rle_tf.models.convnext import convnext_tiny
from rle_tf.models.efficientnet import efficientnet_v2_b0, efficientnet_v2_s
from rle_tf.models.mobilenet import (
    mobilenet,
    mobilenet_v2,
    mobilenet_v3_large,
    mobilenet_v3_small,
)
from rle_tf.models.resnet import DEPTHS

logger = logging.getLogger("rle_tf")

# timm's copies of torchvision's first ImageNet weights, those that the paper starts from.
RESNET_URLS = {
    "resnet18": "https://huggingface.co/timm/resnet18.tv_in1k/resolve/main/model.safetensors",
    "resnet34": "https://huggingface.co/timm/resnet34.tv_in1k/resolve/main/model.safetensors",
    "resnet50": "https://huggingface.co/timm/resnet50.tv_in1k/resolve/main/model.safetensors",
    "resnet101": "https://huggingface.co/timm/resnet101.tv_in1k/resolve/main/model.safetensors",
    "resnet152": "https://huggingface.co/timm/resnet152.tv_in1k/resolve/main/model.safetensors",
}

# keras.applications downloads by itself.
KERAS_PRETRAINED = {
    "mobilenet": mobilenet,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_small": mobilenet_v3_small,
    "mobilenet_v3_large": mobilenet_v3_large,
    "efficientnet_v2_b0": efficientnet_v2_b0,
    "efficientnet_v2_s": efficientnet_v2_s,
    "convnext_tiny": convnext_tiny,
}


def load_weights(backbone: keras.Model, name: str, weights: str | Path) -> None:
    """Fills every variable of a backbone from pretrained weights, or fails and changes none.

    Entries of the source that the backbone does not use (a classifier, the layers above a cut,
    an optimizer's state) are ignored; the logger `rle_tf` says how many there were.

    Args:
        backbone: A functional model of `rle_tf.models.regressor.BACKBONES`, whole or cut.
        name: Its name there; decides what `"imagenet"` means.
        weights: `"imagenet"`, the folder of a run, or a file: `.pth`, `.pt`, `.safetensors` or
            `.npz` with torchvision's keys (of an HRNet, with its authors'; with `backbone.`,
            `preact.` or `module.` before them, too), `.npz` with keys `layer|variable`,
            or a `.weights.h5` or `.keras` that Keras wrote, of this backbone or of any model that
            holds its layers. ImageNet weights of ResNets are torchvision's, trained on RGB in
            [0, 1] less its mean (.485, .456, .406), over its deviation (.229, .224, .225), which
            ConvNeXt and EfficientNetV2-B0 take, too; of MobileNets and EfficientNetV2-S those of
            keras.applications, trained on inputs in [-1, 1].

    Raises:
        ModelError: if a download fails, or a file is absent, of another kind or unreadable, lacks
            a variable or holds one of another shape.
    """
    source, values = (
        _imagenet(name) if str(weights) == "imagenet" else _read(Path(weights).expanduser())
    )
    values = _of_backbone(values)
    depth = resnet_of(values)
    if name.startswith("resnet") and depth not in (None, name):
        # The deeper one has all keys of the other.
        raise ModelError(f"{source}: holds a {depth}; expected a {name}")

    found, problems = {}, []
    for layer in leaves(backbone):
        for index, variable in enumerate(layer.weights):
            keys = _possible_keys(layer, variable, index)
            key = next((key for key in keys if key in values), None)
            is_torch = key == keys[-1]
            shape = torch_shape(layer, variable) if is_torch else tuple(variable.shape)
            if key is None:
                problems.append(f"{keys[0]} (or {keys[-1]}) is missing, expected shape {shape}")
            elif values[key].shape != shape:
                problems.append(f"{key} has shape {values[key].shape}, expected {shape}")
            else:
                value = from_torch(layer, values[key]) if is_torch else values[key]
                found[key] = (variable, value)
                if not np.isfinite(value).all():
                    problems.append(f"{key} holds values that are not finite")
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise ModelError(
            f"{source} does not fit the backbone {name}: of its {len(found) + len(problems)} "
            f"variables {len(problems)} cannot be loaded: {shown}"
        )
    for variable, value in found.values():
        variable.assign(value)
    unused = sorted(set(values) - set(found))
    logger.info(
        "%s: loaded %d variables; ignored %d entries that %s does not use%s",
        source,
        len(found),
        len(unused),
        name,
        f" ({', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''})" if unused else "",
    )


def without_wrapper(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict without the `module.` that PyTorch's DataParallel puts before each key."""
    return {re.sub(r"^(module\.)+", "", key): value for key, value in values.items()}


def _of_backbone(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same without what whole models (mmpose's, the RLE authors') call their backbone."""
    values = without_wrapper(values)
    for prefix in ("backbone.", "preact."):
        if any(key.startswith(prefix) for key in values):
            return {key.removeprefix(prefix): value for key, value in values.items()}
    return values


def resnet_of(keys: Iterable[str]) -> str | None:
    """The name of the ResNet that a state dict's keys are those of; None where it is no whole one,
    or none at all."""
    blocks = [re.match(r"layer([1-4])\.(\d+)\.conv([123])\.weight", key) for key in keys]
    found = [tuple(map(int, match.groups())) for match in blocks if match]
    stages = tuple(
        1 + max((block for stage, block, _ in found if stage == wanted), default=-1)
        for wanted in (1, 2, 3, 4)
    )
    layout = stages, any(conv == 3 for _, _, conv in found)
    return next((f"resnet{depth}" for depth in DEPTHS if DEPTHS[depth] == layout), None)


def leaves(model: keras.Model) -> list[keras.Layer]:
    """The layers that hold variables themselves, of models inside the model, too."""
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if layer.weights and not isinstance(layer, keras.Model)]


# How torchvision calls the variables of a Keras convolution or batch normalisation.
_TORCH_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _possible_keys(layer: keras.Layer, variable: keras.Variable, index: int) -> list[str]:
    keys = [f"{layer.name}|{variable.name}", f"{layer.name}|{index}"]
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        keys.append(f"{layer.name}|depthwise_{variable.name}")  # its name before Keras 3
    return [*keys, torch_key(layer, variable)]


def torch_key(layer: keras.Layer, variable: keras.Variable) -> str:
    """How a state dict calls a variable of a backbone."""
    module = layer.name.replace("_", ".").replace("fuse.layers", "fuse_layers")  # HRNet's
    return f"{module}.{_TORCH_NAMES.get(variable.name, variable.name)}"


def torch_axes(layer: keras.Layer, dims: int) -> tuple[int, ...]:
    """Where the axes of a Keras variable are in a state dict's tensor."""
    if isinstance(layer, keras.layers.DepthwiseConv2D) and dims == 4:
        return 2, 3, 0, 1  # (C, 1, height, width)
    return {4: (2, 3, 1, 0), 2: (1, 0)}.get(dims, tuple(range(dims)))  # (out, in, height, width)


def torch_shape(layer: keras.Layer, variable: keras.Variable) -> tuple[int, ...]:
    shape = variable.shape
    return tuple(shape[axis] for axis in np.argsort(torch_axes(layer, len(shape))))


def from_torch(layer: keras.Layer, tensor: np.ndarray) -> np.ndarray:
    """A tensor of a state dict as the variable of a Keras layer."""
    return tensor.transpose(torch_axes(layer, tensor.ndim))


def to_torch(layer: keras.Layer, value: np.ndarray) -> np.ndarray:
    """The inverse of `from_torch`."""
    return value.transpose(np.argsort(torch_axes(layer, value.ndim)))


def _imagenet(name: str) -> tuple[str, dict[str, np.ndarray]]:
    advice = "; weights may also be the path of a local file"
    if name in RESNET_URLS:
        url = RESNET_URLS[name]
        try:
            path = keras.utils.get_file(
                f"{name}.tv_in1k.safetensors", origin=url, cache_subdir="models"
            )
        except Exception as error:  # Keras raises a bare Exception when a connection fails.
            raise ModelError(
                f"ImageNet weights of {name}: downloading {url} failed: {error}{advice}"
            ) from error
        return _read(Path(path))
    if name in KERAS_PRETRAINED:
        try:
            model = KERAS_PRETRAINED[name]((224, 224), weights="imagenet")
        except Exception as error:  # As above.
            raise ModelError(
                f"ImageNet weights of {name}: the download by keras.applications failed: "
                f"{error}{advice}"
            ) from error
        # By place, too: not all of Keras's variables have names.
        return f"keras.applications' ImageNet weights of {name}", {
            f"{layer.name}|{key}": variable.value.numpy()
            for layer in leaves(model)
            for index, variable in enumerate(layer.weights)
            for key in (variable.name, index)
        }
    raise ModelError(
        f"no ImageNet weights are known for {name!r}, only for "
        f"{', '.join([*RESNET_URLS, *KERAS_PRETRAINED])}{advice}"
    )


def _read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    reader = next((READERS[end] for end in READERS if path.name.endswith(end)), None)
    if (path / "regressor.keras").is_file():  # a run's folder
        path, reader = path / "regressor.keras", _read_keras
    if reader is None:
        raise ModelError(
            f'weights {str(path)!r}: expected "imagenet" or the folder of a run, or a file that '
            f"ends in {', '.join(READERS)}"
        )
    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist")
    try:
        return str(path), reader(path)
    except ModelError:
        raise
    except Exception as error:  # What a broken file raises differs by format and by damage.
        raise ModelError(
            f"weights file {path} cannot be read as {''.join(path.suffixes)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.pth`, `.pt`, `.safetensors` or `.npz` file by their keys.

    Raises:
        ModelError: if it is absent, of another kind or unreadable, or holds anything but tensors
            and plain values; of a `.pth` or `.pt` also where PyTorch is not installed.
    """
    endings = (".pth", ".pt", ".safetensors", ".npz")
    if not path.name.endswith(endings):
        raise ModelError(f"{path}: expected a state dict, a file that ends in {', '.join(endings)}")
    return _read(path)[1]


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ModelError(
            f"{path}: a file of PyTorch's, which is not installed; expected "
            "pip install 'rle-tf[torch]', or the same tensors as .safetensors or .npz"
        ) from None
    # The notes beside the weights may hold NumPy's values, which are data, too, by the names that
    # its versions have for them.
    made_by = {"_reconstruct": np.zeros(1).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    data = [
        (function, f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")
        for name, function in made_by.items()
    ]
    types = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdU"]
    try:
        with (
            torch.serialization.safe_globals([*data, np.ndarray, np.dtype, *types]),
            warnings.catch_warnings(action="ignore"),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            raise ModelError(
                f"{path}: holds a {foreign[1]}, and to load that could run code; expected tensors "
                "and plain values alone. Where the file was made: "
                "torch.save(model.state_dict(), FILE)"
            ) from None
        # Not always PyTorch's own words, which may advise to load it all the same.
        reason = str(error).partition("\n")[0]
        if "weights_only" in str(error):
            reason = "damaged, or no state dict of PyTorch's"
        raise ValueError(reason) from None
    while isinstance(content, dict):
        inner = next((content[key] for key in ("state_dict", "model") if key in content), None)
        if not isinstance(inner, dict):
            break
        content = inner
    tensors = content if isinstance(content, dict) else {}
    tensors = {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = f" of {', '.join(map(str, content))}" if isinstance(content, dict) else ""
        raise ModelError(
            f"{path}: found a {type(content).__name__}{keys:.200}; expected a state dict"
        )
    # NumPy has no bfloat16.
    return {
        str(key): (value.float() if value.is_floating_point() else value).detach().numpy()
        for key, value in tensors.items()
    }


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # Of a file that is cut short NumPy would leave one open that it opened itself.
    with path.open("rb") as file, np.load(file) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _read_keras(path: Path) -> dict[str, np.ndarray]:
    # The weights alone: the model's own code (a training wrapper's, say) need not be importable.
    with zipfile.ZipFile(path) as archive:
        return _read_h5(io.BytesIO(archive.read("model.weights.h5")))


def _read_h5(file: Path | io.BytesIO) -> dict[str, np.ndarray]:
    """Values by `layer|index`, index in the order of `layer.weights`.

    Keras itself matches layers by class and position, which loads a file of another architecture
    as long as the shapes agree; the name that it stores with each layer is the safer key.
    """
    values = {}

    def visit(_, entry):
        if isinstance(entry, h5py.Group) and "name" in entry.attrs:
            for index, value in entry.items():
                values[f"{entry.attrs['name']}|{index}"] = value[()]

    with h5py.File(file, "r") as root:
        root.visititems(visit)
    return values


READERS = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": safetensors.numpy.load_file,
    ".npz": _read_npz,
    ".weights.h5": _read_h5,
    ".keras": _read_keras,
}
