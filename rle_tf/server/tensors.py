"""TensorFlow Serving's JSON: requests in, arrays out, and back.

Dense tensors are nested lists, whose shape is that of the first elements; bytes are {"b64": ...}.
An empty list takes the dimensions that it cannot say from the signature: `[]` for (N, 4) is (0, 4).
TensorFlow Serving's JSON has no (1, 0, 4), nor does it take whole numbers above 2**24 for float32;
whatever else is read here it reads, too. It passes over keys that it does not know, which are
errors here.
"""

import base64
import binascii
import io
import json
import warnings
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError
from pydantic_core import from_json

from rle_tf.server import Options

Specs = Mapping[str, tf.TensorSpec]


class RequestError(Exception):
    """The request is at fault; the message is the sentence that its sender gets."""


class PredictBody(BaseModel):
    """The top level of a predict request."""

    model_config = ConfigDict(extra="forbid")

    signature_name: StrictStr = ""
    instances: Any = None
    inputs: Any = None

    @property
    def rows(self) -> bool:
        """Whether it has the row format, an object or a value for each image."""
        return "instances" in self.model_fields_set


def read_body(body: bytes | bytearray) -> PredictBody:
    """Parses JSON, of a depth that its parser bounds, and checks the top level.

    Raises:
        RequestError: It is neither.
    """
    try:
        content = from_json(body)
    except ValueError as error:  # also not UTF-8
        raise RequestError(f"body: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise RequestError(
            f"body: found {_kind(content)}; expected an object with 'instances' or 'inputs'"
        )
    try:
        parsed = PredictBody.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = first["loc"][0]
        if first["type"] == "extra_forbidden":
            message = f"found the key {key!r:.80}; expected 'signature_name', 'instances', 'inputs'"
        else:
            message = f"{key}: found {_kind(first['input'])}; expected a string"
        raise RequestError(f"body: {message}") from None
    if len(parsed.model_fields_set & {"instances", "inputs"}) != 1:
        raise RequestError("body: expected one of 'instances' (rows) and 'inputs' (columns)")
    return parsed


def read_tensors(body: PredictBody, specs: Specs, options: Options) -> dict[str, np.ndarray]:
    """The inputs of a request as arrays that fit the signature, of one batch size.

    Args:
        body: The request.
        specs: By the name of each input its shape, (B, ...), and dtype.
        options: The limits of B, of a second dimension that the signature leaves free, and of
            photographs.

    Returns:
        By name. Strings are arrays of bytes objects.

    Raises:
        RequestError: The inputs are not those; the message names the input.
    """
    arrays = _rows(body.instances, specs) if body.rows else _columns(body.inputs, specs)
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise RequestError(f"inputs: found {sizes} images; expected as many in each input")
    (count,) = set(sizes.values())
    if not 1 <= count <= options.images:
        raise RequestError(f"found {count} images; expected 1 to {options.images} in a request")
    for name, array in arrays.items():
        if is_free(specs[name]) and array.shape[1] > options.boxes:
            raise RequestError(
                f"{name}: found {array.shape[1]} boxes in an image; expected at most"
                f" {options.boxes}"
            )
        if specs[name].dtype == tf.string:
            megapixels = sum(map(_pixels, array.flat)) / 1e6
            if megapixels > options.megapixels:
                raise RequestError(
                    f"{name}: found {megapixels:.0f} megapixels or more in a request; expected at"
                    f" most {options.megapixels}"
                )
    return arrays


def _pixels(encoded: bytes) -> int:
    """Width times height as an image's header states them; 0 where it is none, which the model
    says in its own words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of large images: this is where they end
            with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        return 2 * Image.MAX_IMAGE_PIXELS  # at least: it does not say how many
    except Exception:  # a header may be wrong in more ways than Pillow foresees
        return 0


def is_free(spec: tf.TensorSpec) -> bool:
    """Whether the second dimension is free: the number of boxes."""
    return spec.shape.rank > 1 and spec.shape[1] is None


def write_tensors(arrays: Mapping[str, np.ndarray], rows: bool) -> bytes:
    """The answer in the format of the request; a sole output goes without its name.

    Float32 is written with as many digits as it has, NaN and infinity bare, as TensorFlow Serving
    does.
    """
    values = {name: _listed(array) for name, array in arrays.items()}
    if len(values) == 1:
        (content,) = values.values()
    elif rows:
        content = [
            dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)
        ]
    else:
        content = values
    return json.dumps({"predictions" if rows else "outputs": content}).encode()


def _listed(array: np.ndarray) -> list:
    if array.dtype == np.float32:
        # By way of float32's own digits, since 0.2 would become 0.20000000298023224.
        array = array.astype(str).astype(float)
    return array.tolist()


def _rows(instances: Any, specs: Specs) -> dict[str, np.ndarray]:
    if not isinstance(instances, list) or not instances:
        raise RequestError(
            f"instances: found {_kind(instances)}; expected a list with an entry for each image"
        )
    names = sorted(specs)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for index, instance in enumerate(instances):
        where = f"instances[{index}]"
        if not _is_object(instance):
            if len(names) > 1:
                raise RequestError(
                    f"{where}: found {_kind(instance)}; expected an object with {_words(names)}"
                )
            instance = {names[0]: instance}
        _check_names(instance, names, where)
        for name in names:
            spec = specs[name]
            array = _array(instance[name], spec.shape.as_list()[1:], spec.dtype, f"{where}.{name}")
            if columns[name] and array.shape != columns[name][0].shape:
                raise RequestError(
                    f"{where}.{name}: found shape {array.shape}; expected"
                    f" {columns[name][0].shape} as in instances[0] (four equal numbers are no box)"
                )
            columns[name].append(array)
    return {name: np.stack(arrays) for name, arrays in columns.items()}


def _columns(inputs: Any, specs: Specs) -> dict[str, np.ndarray]:
    names = sorted(specs)
    if not _is_object(inputs):
        if len(names) > 1:
            raise RequestError(
                f"inputs: found {_kind(inputs)}; expected an object with {_words(names)}"
            )
        inputs = {names[0]: inputs}
    _check_names(inputs, names, "inputs")
    return {
        name: _array(inputs[name], specs[name].shape.as_list(), specs[name].dtype, f"inputs.{name}")
        for name in names
    }


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _check_names(found: dict, names: list[str], where: str) -> None:
    if sorted(found) != names:
        given = _words(sorted(found)[:8]) if found else "no input"
        raise RequestError(f"{where}: found {given:.200}; expected {_words(names)}")


def _array(value: Any, expected: list[int | None], dtype: tf.DType, where: str) -> np.ndarray:
    """Nested lists as an array of the expected shape, in which None is any size."""
    shape: list[int] = []
    leaves = [value]
    # A level at a time: `map`, `set` and `chain` go through large images without a Python loop.
    while leaves and isinstance(leaves[0], list):
        if len(shape) == len(expected):
            raise RequestError(
                f"{where}: found more than {len(expected)} levels of lists; expected"
                f" {_shape_words(expected)}"
            )
        if set(map(type, leaves)) != {list} or len(set(map(len, leaves))) > 1:
            raise RequestError(
                f"{where}: found lists of unequal lengths; expected {_shape_words(expected)}"
            )
        shape.append(len(leaves[0]))
        leaves = list(chain.from_iterable(leaves))
    if not leaves:
        shape += [size or 0 for size in expected[len(shape) :]]
    if len(shape) != len(expected) or any(
        size not in (None, found) for found, size in zip(shape, expected, strict=False)
    ):
        raise RequestError(
            f"{where}: found {_shape_words(shape)}; expected {_shape_words(expected)}"
        )
    return _flat_array(leaves, dtype, where).reshape(shape)


def _flat_array(leaves: list, dtype: tf.DType, where: str) -> np.ndarray:
    """The values at the end of the lists, whose types are looked at: NumPy would take True for 1
    and a ragged list for an object."""
    types = set(map(type, leaves))
    if dtype == tf.string:
        array = np.empty(len(leaves), object)
        array[:] = [_bytes(leaf, where) for leaf in leaves]
        return array
    fitting = {int, float} if dtype.is_floating else {bool} if dtype.is_bool else {int}
    if not types <= fitting:
        odd = next(leaf for leaf in leaves if type(leaf) not in fitting)
        raise RequestError(f"{where}: found {_kind(odd)}; expected {dtype.name} numbers")
    try:
        # Integers in between, so that NumPy does not make 255.0 of 2**63.
        wide = np.array(leaves, float if dtype.is_floating else bool if dtype.is_bool else np.int64)
        with np.errstate(over="ignore"):
            array = wide.astype(dtype.as_numpy_dtype)
        lossless = np.isinf(array) == np.isinf(wide) if dtype.is_floating else array == wide
        fits = bool(np.all(lossless))
    except OverflowError:
        fits = False
    if not fits:
        raise RequestError(f"{where}: found a number that does not fit {dtype.name}")
    return array


def _bytes(leaf: Any, where: str) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode()
    if not _is_base64(leaf):
        raise RequestError(f'{where}: found {_kind(leaf)}; expected {{"b64": "..."}} or a string')
    text = "".join(leaf["b64"].split())
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):  # the latter where it is not ASCII
        raise RequestError(f"{where}: found b64 that is not base64") from None


def _kind(value: Any) -> str:
    """What a JSON value is, in a few words that do not repeat a whole photograph."""
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return f"{json.dumps(value):.40}"
        case str():
            return f"the string {json.dumps(value[:40])}"
        case list():
            return "a list" if value else "an empty list"
    return "an object"


def _words(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _shape_words(shape: list[int | None]) -> str:
    if not shape:
        return "a single value"
    return f"shape ({', '.join('any' if size is None else str(size) for size in shape)})"
