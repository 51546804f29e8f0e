"""Weights that others have published, as models of this package, and the way back.

Two families: the RLE authors' own files (2D and 3D), and mmpose's, whose tensors mean the same and
are called and arranged differently. Both are state dicts, names of PyTorch modules and tensors.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from rle_tf.config import RunConfig, load_config
from rle_tf.config_file import validated
from rle_tf.errors import ModelError
from rle_tf.estimator import PoseEstimator
from rle_tf.files import write_whole
from rle_tf.flow import RealNVP
from rle_tf.losses import RLELoss
from rle_tf.models.regressor import build_regressor
from rle_tf.models.weights import (
    from_torch,
    leaves,
    read_state_dict,
    resnet_of,
    to_torch,
    torch_key,
    torch_shape,
    without_wrapper,
)
from rle_tf.parity import Parity, compare
from rle_tf.run_folder import RunFolder
from rle_tf.skeletons import COCO17, H36M18, LSP14, MPII16, Skeleton

LOG = logging.getLogger("rle_tf")

# The joints that models with so many coordinates of so many joints are usually of.
_SKELETONS = {(2, 17): COCO17, (2, 16): MPII16, (2, 14): LSP14, (3, 18): H36M18}
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "box_margin": 1.25}
# By layout and number of coordinates: what crops were, and whether joints outside counted.
_CROPS = {
    ("authors", 2): (
        {"mean": [0.406, 0.457, 0.48], "std": [1.0, 1.0, 1.0], "box_margin": 1.25},
        True,
    ),
    ("authors", 3): (_IMAGENET, False),
    ("mmpose", 2): (_IMAGENET, False),
}
# To go on with: published weights have seen their epochs. Not measured.
_TUNING = {"learning_rate": 1e-4, "epochs": 20, "drop_epochs": [15], "warmup_steps": 500}
# Kept in a state dict and of no meaning for a prediction.
_UNUSED = re.compile(r".*\.num_batches_tracked|flow(2d|3d)?\.(mask|loc|cov)")
# Which dimensions a coupling keeps, in turns.
_MASKS = {2: ((0.0, 1.0), (1.0, 0.0)), 3: ((0.0, 0.0, 1.0), (1.0, 1.0, 0.0))}
# Rounding of float32 is a hundredth of that.
_MOST_OFF = 1e-3
_SIZE_IN_NAME = re.compile(r"(?<!\d)(\d{3})x(\d{3})(?!\d)")


@dataclass(frozen=True)
class Published:
    """A state dict of an RLE regressor, recognised.

    Attributes:
        layout: "authors", or "mmpose".
        backbone: Its name in `rle_tf.models.regressor.BACKBONES`.
        joints, dims: K and D of its poses.
        tensors: float32, by the authors' keys.
        names: By the same keys, those that the file has.
        unused: Keys of the file that a prediction does not depend on.
        unknown: Keys that no such model has.
    """

    layout: str
    backbone: str
    joints: int
    dims: int
    tensors: dict[str, np.ndarray]
    names: dict[str, str]
    unused: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def skeleton(self) -> Skeleton:
        """The joints that models of this kind are trained on.

        Raises:
            ModelError: if there are others than those.
        """
        if (self.dims, self.joints) not in _SKELETONS:
            usual = ", ".join(f"{joints} in {dims}D" for dims, joints in _SKELETONS)
            raise ModelError(
                f"{self.names['fc_coord.linear.weight']}: of {self.joints} joints in {self.dims}D; "
                f"expected {usual}, or a skeleton that has as many (rle-tf import --config)"
            )
        return _SKELETONS[self.dims, self.joints]

    @property
    def feature_norm(self) -> bool:
        return self.layout == "authors"

    @property
    def convention(self) -> str:
        return "official" if self.layout == "authors" else "mmpose"


def recognise(state: Mapping[str, np.ndarray]) -> Published:
    """Finds out what a state dict is of, by its keys.

    Args:
        state: {key: tensor}, as PyTorch keeps them: (out, in) and (out, in, height, width). A
            `module.` before every key is taken off, and half precision becomes float32.

    Raises:
        ModelError: if it is of no RLE regressor, or a tensor holds no finite numbers.
    """
    state = without_wrapper(dict(state))
    _refuse_others(state)
    head = next((name for name in ("head", "keypoint_head") if f"{name}.fc.weight" in state), None)
    if head is None:
        layout, names = "authors", {key: key for key in state}
    else:
        layout, names = "mmpose", {}
        for key in state:
            ours = re.sub(r"^backbone\.", "preact.", key)
            ours = re.sub(rf"^{head}\.loss(_module)?\.flow_model\.", "flow.", ours)
            names[ours] = key
    tensors = {key: _float32(names[key], state[names[key]]) for key in names}
    if head:
        _split_head(tensors, names, head)
    dims = 3 if any(key.startswith("flow3d.") for key in tensors) else 2
    coordinates = _tensor(tensors, "fc_coord.linear.weight", names, 2)
    if not len(coordinates) or len(coordinates) % dims:
        raise ModelError(
            f"{names['fc_coord.linear.weight']}: found shape {coordinates.shape}; expected "
            f"({dims} for each joint, features)"
        )
    _check_masks(tensors, names)
    unused = {key for key in tensors if _UNUSED.fullmatch(key)}
    wanted = {key for key in tensors if re.match(r"(preact|fc_coord|fc_sigma|flow(2d|3d)?)\.", key)}
    unknown = tensors.keys() - wanted
    return Published(
        layout=layout,
        backbone=_backbone(tensors),
        joints=len(coordinates) // dims,
        dims=dims,
        tensors={key: tensors[key] for key in wanted - unused},
        names=names,
        unused=tuple(sorted(names[key] for key in unused)),
        unknown=tuple(sorted(names[key] for key in unknown)),
    )


def load_state_dict(
    state: Mapping[str, np.ndarray],
    *,
    skeleton: Skeleton | None = None,
    image_size: tuple[int, int] | None = None,
) -> PoseEstimator:
    """An estimator, uncompiled, with the weights of a published RLE model: regressor and flow.

    Its means have this package's origin, the crop's centre, whatever that of the file is.

    Args:
        state: As in `recognise`: of the authors (`preact.`, `fc_coord.`, `fc_sigma.`, `flow.` or
            `flow2d.` and `flow3d.`), or of mmpose (`backbone.`, `head.` or `keypoint_head.`).
        skeleton: By default COCO's 17 joints, MPII's 16 or the 14 of Leeds Sports Pose in 2D, the
            18 of Human3.6M in 3D.
        image_size: (height, width) of the crops, which the tensors do not tell, and which the
            regressor takes no others of; by default 256x192, and 256x256 in 3D.

    Raises:
        ModelError: if a tensor is missing, of another shape or not finite, or the keys are those of
            another kind of model.
    """
    published = recognise(state)
    estimator = build(published, skeleton, image_size)
    if published.unknown:
        LOG.warning(
            "the state dict has %d entries that are of no RLE regressor: %s",
            len(published.unknown),
            ", ".join(published.unknown[:5]),
        )
    return estimator


def build(
    published: Published,
    skeleton: Skeleton | None = None,
    image_size: tuple[int, int] | None = None,
    root_sigma: bool = True,
) -> PoseEstimator:
    """`load_state_dict` of what was recognised; `root_sigma` as in `build_regressor`."""
    skeleton = skeleton or published.skeleton
    if len(skeleton.joints) != published.joints:
        raise ModelError(
            f"skeleton '{skeleton.name}' has {len(skeleton.joints)} joints; expected "
            f"{published.joints}, as {published.names['fc_coord.linear.weight']} has"
        )
    dims, tensors = published.dims, published.tensors
    regressor = build_regressor(
        published.backbone,
        skeleton,
        dims,
        image_size or ((256, 192) if dims == 2 else (256, 256)),
        feature_norm=published.feature_norm,
        root_sigma=root_sigma,
    )
    flows = {prefix: _flow(tensors, prefix, d, published.names) for prefix, d in _flows(dims)}
    flow, flow_2d = flows["flow" if dims == 2 else "flow3d"], flows.get("flow2d")
    loss = RLELoss(flow, convention=published.convention, flow_2d=flow_2d)
    estimator = PoseEstimator(regressor, loss)
    values, used = [], set()
    for key, layer, variable in _entries(estimator):
        tensor = _tensor(tensors, key, published.names)
        wanted = torch_shape(layer, variable)
        if tensor.shape != wanted:
            raise ModelError(
                f"{published.names[key]}: found shape {tensor.shape}; expected {wanted} in a "
                f"{published.backbone} with {published.joints} joints"
            )
        values.append((variable, from_torch(layer, tensor)))
        used.add(key)
    if left := sorted(published.names[key] for key in tensors.keys() - used):
        raise ModelError(
            f"{left[0]} and {len(left) - 1} more: not of a {published.backbone} with a flow of "
            f"{len(flow.scale_nets)} couplings; expected no other tensors there"
        )
    for variable, value in values:
        variable.assign(value)
    return estimator


def state_dict(estimator: PoseEstimator) -> dict[str, np.ndarray]:
    """The inverse of `load_state_dict`: regressor and flow by the authors' keys.

    Raises:
        ModelError: if it is a model that their code does not have.
    """
    _check_is_theirs(estimator)
    state = {}
    for key, layer, variable in _entries(estimator):
        state[key] = to_torch(layer, variable.numpy())
        if key.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = np.int64(0)
    for prefix, flow in _flows_of(estimator):
        masks = [_MASKS[flow.dims][i % 2] for i in range(len(flow.scale_nets))]
        state[f"{prefix}.mask"] = np.array(masks, "float32")
    return {key: np.asarray(value, order="C") for key, value in state.items()}


def import_checkpoint(
    file: Path,
    out: Path,
    defaults: Mapping[int, Path],
    recipe: Path | None = None,
    overrides: list[str] | tuple[str, ...] = (),
) -> tuple[RunConfig, Published, Parity]:
    """Makes of a published file what a training leaves: to evaluate, to export and to go on with.

    `config.yaml` starts a training from it (`train.start`); `parity.json` says what of the file was
    used, and how far the regressor is from an evaluation of the file's tensors in plain NumPy.

    Args:
        file: `.pth`, `.pt`, `.safetensors` or `.npz`.
        out: A folder, new or without a run.
            A `.json` of the same name beside it, as `rle-tf export --format torch` writes one, says
            what crops were like.
        defaults: By the number of coordinates, recipes with the data that it is to be evaluated
            and go on with; `model`, `loss` and how crops are made become the file's, and training
            is a short one. The image size is the one in the file's name (`_256x192`), else the
            recipe's.
        recipe: One to take in their place, whose backbone must be the file's.
        overrides: Of the recipe; what they name stays.

    Raises:
        ModelError: as `read_state_dict` and `load_state_dict`, or if OUT has a run.
        ConfigError: for a recipe of another backbone, skeleton or number of coordinates.
    """
    folder = RunFolder(out)
    if folder.config.exists():
        raise ModelError(f"{out}: has a model already; expected a new folder")
    state = read_state_dict(file)
    try:
        published = recognise(state)
        config = load_config(recipe or defaults[published.dims], list(overrides))
        found = getattr(config.model, "backbone", config.model.kind)
        if recipe and found != published.backbone:
            raise ModelError(
                f"holds a {published.backbone}; expected a {found}, as {recipe} has (or "
                f"--set model.backbone={published.backbone})"
            )
        config = _adapted(config, published, file, out, overrides, tuning=recipe is None)
        estimator = build(
            published,
            config.data.source.skeleton,
            config.data.image_size,
            config.model.root_sigma,
        )
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None
    parity = compare(without_wrapper(state), estimator, published.layout)
    if not all(value < _MOST_OFF for value in vars(parity).values()):
        raise ModelError(
            f"{file}: the regressor is off from a plain evaluation of its tensors ({parity}); "
            f"expected less than {_MOST_OFF}"
        )
    out.mkdir(parents=True, exist_ok=True)
    folder.save_regressor(estimator)
    report = {
        "file": file.name,
        "layout": published.layout,
        "backbone": published.backbone,
        "tensors": len(published.tensors),
        "unused": len(published.unused),
        "unknown": published.unknown,
        **vars(parity),
    }
    write_whole(out / "parity.json", json.dumps(report, indent=1) + "\n")
    config.save(folder.config)  # last: what has it is whole
    return config, published, parity


def _adapted(
    config: RunConfig,
    published: Published,
    file: Path,
    out: Path,
    overrides: list[str] | tuple[str, ...],
    tuning: bool,
) -> RunConfig:
    """A recipe with the model of a file, and its crops."""
    skeleton = config.data.source.skeleton
    if len(skeleton.joints) != published.joints:
        raise ModelError(
            f"has {published.joints} joints; expected the {len(skeleton.joints)} of "
            f"'{skeleton.name}', as recipe {config.name} has, or --config with another recipe"
        )
    values = config.model_dump(mode="json")
    kept = {entry.partition("=")[0].strip() for entry in overrides}
    crops, keep_outside = _CROPS[published.layout, published.dims]
    size = _SIZE_IN_NAME.search(file.name)
    if size:
        crops = crops | {"image_size": [int(size[1]), int(size[2])]}
    beside = _beside(file)
    crops = crops | {key: beside[key] for key in _BESIDE if key in beside and key != "root_sigma"}
    values["data"] |= {key: value for key, value in crops.items() if f"data.{key}" not in kept}
    if values["data"]["augmentation"] and "data.augmentation.keep_outside" not in kept:
        values["data"]["augmentation"]["keep_outside"] = keep_outside
    values["name"] = re.sub(r"[^\w.-]", "_", out.resolve().name)
    values["model"] = {
        "backbone": published.backbone,
        "feature_norm": published.feature_norm,
        "root_sigma": beside.get("root_sigma", True),
    }
    flow = _flows(published.dims)[0][0]
    values["loss"] = {
        "kind": "rle",
        "convention": published.convention,
        "flow_layers": _couplings(published.tensors, flow),
        "flow_hidden": len(_tensor(published.tensors, f"{flow}.s.0.0.weight", published.names, 2)),
    }
    # Absolute: the config is read from other folders, too.
    values["train"] |= {"start": str(out.expanduser().resolve())}
    if tuning and not {f"train.{key}" for key in _TUNING} & kept:
        values["train"] |= _TUNING
    return validated(RunConfig, values, f"recipe {config.name} with the model of {file}")


_BESIDE = ("image_size", "mean", "std", "box_margin", "root_sigma")


def crops_of(config: RunConfig) -> dict:
    """What a state dict does not say of its model, for the `.json` beside it."""
    data = config.data.model_dump(mode="json")
    return {key: data[key] for key in _BESIDE if key in data} | {
        "root_sigma": config.model.root_sigma
    }


def _beside(file: Path) -> dict:
    path = file.with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def _refuse_others(state: Mapping[str, np.ndarray]) -> None:
    """Raises `ModelError` for models that are known and no regression."""
    maps = [key for key in state if re.search(r"(^|\.)(final_layer|deconv_layers)\.", key)]
    if maps:
        raise ModelError(
            f"{maps[0]}: a heatmap model; expected an RLE regressor. Its backbone can start a "
            "training: --set model.weights=FILE"
        )
    way = "Its backbone can start a training: --set model.weights=FILE"
    heads = ("fc_coord.linear.weight", "head.fc.weight", "keypoint_head.fc.weight")
    head = next((head for head in heads if head in state), None)
    stem = next(
        (k for k in state if re.fullmatch(r"(backbone\.|preact\.)?conv1\..*weight", k)), None
    )
    if head is None:
        if stem:
            raise ModelError(
                f"{stem}: a backbone, or a network for classification; expected an RLE regressor "
                f"with {', '.join(heads[:2])} or {heads[2]}. {way}"
            )
        found = ", ".join(list(state)[:3]) or "nothing"
        raise ModelError(f"found {found}, ...; expected {', '.join(heads[:2])} or {heads[2]}")
    if head != heads[0] and not any(".flow_model." in key for key in state):
        raise ModelError(
            f"{head}: and no flow_model; a network for classification, or a regression without "
            f"RLE; expected an RLE regressor. {way}"
        )


def _float32(key: str, value: np.ndarray) -> np.ndarray:
    value = np.asarray(value)
    if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
        raise ModelError(f"{key}: found {value.dtype}; expected numbers")
    value = value.astype("float32")
    if not np.isfinite(value).all():
        raise ModelError(f"{key}: found {np.sum(~np.isfinite(value))} values that are not finite")
    if key.endswith("running_var") and (value < 0).any():
        raise ModelError(f"{key}: found {value.min()}; expected variances, none below 0")
    return value


def _split_head(tensors: dict[str, np.ndarray], names: dict[str, str], head: str) -> None:
    """Makes of mmpose's one layer, x, y and their sigmas joint by joint, the authors' two."""
    for part in ("weight", "bias"):
        key = f"{head}.fc.{part}"
        whole = _tensor(tensors, key, names, 2 if part == "weight" else 1)
        if len(whole) % 4 or not len(whole):
            raise ModelError(
                f"{key}: found shape {whole.shape}; expected 4 rows for each joint, as regression "
                "with RLE has"
            )
        by_joint = whole.reshape(-1, 4, *whole.shape[1:])
        means, sigmas = by_joint[:, :2], by_joint[:, 2:]
        if part == "bias":
            means = means - np.float32(0.5)  # from the crop's corner to its centre
        for name, values in (("fc_coord", means), ("fc_sigma", sigmas)):
            ours = f"{name}.linear.{part}"
            tensors[ours], names[ours] = values.reshape(-1, *whole.shape[1:]), key
        del tensors[key], names[key]


def _tensor(
    tensors: Mapping[str, np.ndarray],
    key: str,
    names: Mapping[str, str],
    axes: int | None = None,
) -> np.ndarray:
    if key not in tensors:
        raise ModelError(f"{_name_in_file(key, names)}: missing; expected all of an RLE regressor")
    if axes is not None and tensors[key].ndim != axes:
        raise ModelError(
            f"{names[key]}: found shape {tensors[key].shape}; expected one of {axes} axes"
        )
    return tensors[key]


def _name_in_file(key: str, names: Mapping[str, str]) -> str:
    """What a key that is missing would be called in the file."""
    module = key.partition(".")[0] + "."
    for ours, theirs in names.items():
        if ours.startswith(module) and theirs.endswith(ours.removeprefix(module)):
            return theirs.removesuffix(ours.removeprefix(module)) + key.removeprefix(module)
    return key


def _check_masks(tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
    for key in tensors:
        if re.fullmatch(r"flow(2d|3d)?\.mask", key):
            found = tensors[key]
            dims = 3 if key.startswith("flow3d") else 2
            expected = [_MASKS[dims][i % 2] for i in range(len(np.atleast_1d(found)))]
            if not np.array_equal(found, expected):
                raise ModelError(
                    f"{names[key]}: found {found.tolist()}; expected {_MASKS[dims]} in turns"
                )


def _backbone(tensors: Mapping[str, np.ndarray]) -> str:
    keys = [key.removeprefix("preact.") for key in tensors if key.startswith("preact.")]
    if "conv2.conv.weight" in keys:
        return "mobilenet_v2_torch"
    name = resnet_of(keys)
    if name is None:
        raise ModelError(
            f"a backbone of {len(keys)} tensors ({', '.join(keys[:3])}, ...); expected a ResNet of "
            "18, 34, 50, 101 or 152 layers or a MobileNetV2"
        )
    return name


def _flows(dims: int) -> list[tuple[str, int]]:
    """What the authors call the flows of a D-dimensional regressor, and their dimensions."""
    return [("flow", 2)] if dims == 2 else [("flow2d", 2), ("flow3d", 3)]


def _couplings(tensors: Mapping[str, np.ndarray], prefix: str) -> int:
    found = {int(m[1]) for key in tensors if (m := re.match(rf"{prefix}\.[st]\.(\d+)\.", key))}
    return max(found, default=0) + 1


def _flow(
    tensors: Mapping[str, np.ndarray], prefix: str, dims: int, names: Mapping[str, str]
) -> RealNVP:
    hidden = len(_tensor(tensors, f"{prefix}.s.0.0.weight", names, 2))
    return RealNVP(dims, _couplings(tensors, prefix), hidden, name=prefix)


def _flows_of(estimator: PoseEstimator) -> list[tuple[str, RealNVP]]:
    flows = {flow.dims: flow for flow in estimator.flows}
    dims = estimator.regressor.output["mu"].shape[-1]
    return [(prefix, flows[d]) for prefix, d in _flows(dims)]


def _entries(
    estimator: PoseEstimator,
) -> Iterator[tuple[str, keras.layers.Layer, keras.Variable]]:
    """The authors' key of each variable of regressor and flows, and the layer that has it."""
    regressor = estimator.regressor
    for layer in leaves(regressor.get_layer("backbone")):
        for variable in layer.weights:
            yield f"preact.{torch_key(layer, variable)}", layer, variable
    dims = regressor.output["mu"].shape[-1]
    sigma = "fc_sigma.linear" if dims == 2 else "fc_sigma"  # as their two classes have it
    for module, name in (("fc_coord.linear", "mu_dense"), (sigma, "sigma_dense")):
        layer = regressor.get_layer(name)
        for part, variable in zip(("weight", "bias"), layer.weights, strict=True):
            yield f"{module}.{part}", layer, variable
    for prefix, flow in _flows_of(estimator):
        for kind, nets in (("t", flow.shift_nets), ("s", flow.scale_nets)):
            for index, net in enumerate(nets):
                # Between them are the activations.
                for place, layer in zip((0, 2, 4), net.dense, strict=True):
                    for part, variable in zip(("weight", "bias"), layer.weights, strict=True):
                        yield f"{prefix}.{kind}.{index}.{place}.{part}", layer, variable


def _check_is_theirs(estimator: PoseEstimator) -> None:
    regressor, loss = estimator.regressor, estimator.loss
    regressor_dims = regressor.output["mu"].shape[-1]
    names = {layer.name for layer in regressor.layers}
    found = None
    if "score_maps" in names or "mu_dense" not in names:
        found = "head soft_argmax or heatmap, or a lifter"
    elif "feature_norm" not in names:
        found = "feature_norm false"
    elif (
        resnet_of(
            torch_key(layer, variable)
            for layer in leaves(regressor.get_layer("backbone"))
            for variable in layer.weights
        )
        is None
    ):
        found = "another backbone, or a part of one"
    elif not isinstance(loss, RLELoss) or any(flow.joints for flow in estimator.flows):
        found = f"loss {loss.name}, or a flow for each joint"
    elif {flow.dims for flow in estimator.flows} != {dims for _, dims in _flows(regressor_dims)}:
        found = "no flow of two dimensions beside that of three"
    if found:
        raise ModelError(
            f"regressor '{regressor.name}' with {found}; expected what the authors' code has: a "
            "whole ResNet, head pooled with feature_norm, loss rle with one flow"
        )
