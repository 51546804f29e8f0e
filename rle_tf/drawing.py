"""Poses with their uncertainty drawn on photographs and, in 3D, from other viewpoints; pictures
laid out on a sheet.

Everything is drawn with soft edges and straight into the pixels it covers, so that the cost is
that of the drawn area and not of the photograph. A pixel's coordinate is that of its centre.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from rle_tf.errors import DataError
from rle_tf.skeletons import Skeleton

# Orange and blue stay apart for every common kind of colour blindness (Okabe and Ito, 2008);
# both are a little brighter here than there, for dark photographs.
SIDE_COLOURS = {"left": (255, 149, 0), "right": (20, 120, 245), "middle": (242, 242, 242)}
"""RGB of what is on the person's left, right and in the middle."""

_CASING = (20, 20, 20)
_FAR_PX = 1e6  # beyond any photograph

# The canvas of `draw_views`: dark, since light leaves what is in the middle of the body invisible.
_BACKGROUND, _GRID, _GROUND, _TEXT = (52, 60, 72), (66, 75, 88), (112, 122, 136), (214, 219, 226)
_REFERENCE_COLOURS = dict.fromkeys(SIDE_COLOURS, (152, 159, 169))
_VIEW_MM = 2400.0  # across a canvas: people of any size and pose compare, nearly all fit
_FILLED = 0.78  # of the canvas, between the writing above and below


def draw_poses(
    image: Image.Image | np.ndarray,
    keypoints_px: ArrayLike,
    sigma_px: ArrayLike | None,
    skeleton: Skeleton,
    *,
    confidence: ArrayLike | None = None,
    boxes_xyxy: ArrayLike | None = None,
    min_confidence: float = 0.0,
) -> Image.Image:
    """Draws N people: bones, joints, and a one- and a two-sigma ellipse around each joint.

    What belongs to the person's left, right and middle has the `SIDE_COLOURS`; bones between
    left and right count as middle. Widths follow the sizes of the person and of the image.
    Joints may lie outside the image; one that is not finite is left out with its bones, and a
    sigma that is not finite and positive is left out.

    Args:
        image: A Pillow image of any mode, or uint8 (H, W, 3) RGB. Not changed.
        keypoints_px: (N, K, 2) x and y.
        sigma_px: (N, K, 2) standard deviations along x and y, or None for no ellipses.
        skeleton: Names and bones of the K joints.
        confidence: (N, K), or None where all joints are drawn.
        boxes_xyxy: (N, 4) boxes to be outlined, in pixels.
        min_confidence: Joints below it are left out.

    Returns:
        A new RGB image of the same size.

    Raises:
        DataError: An array whose shape or dtype is not the above.
    """
    canvas = _canvas(image)
    keypoints_px = _finite(keypoints_px)
    people = (len(keypoints_px), len(skeleton.joints))
    _check_shape("draw_poses", "keypoints_px", keypoints_px, (*people, 2))
    drawn = np.isfinite(keypoints_px).all(axis=-1)
    if confidence is not None:
        confidence = np.asarray(confidence, float)
        _check_shape("draw_poses", "confidence", confidence, people)
        drawn &= confidence >= min_confidence
    sigma_px = np.full((*people, 2), np.nan) if sigma_px is None else _finite(sigma_px)
    _check_shape("draw_poses", "sigma_px", sigma_px, (*people, 2))
    boxes_xyxy = np.full((people[0], 4), np.nan) if boxes_xyxy is None else _finite(boxes_xyxy)
    _check_shape("draw_poses", "boxes_xyxy", boxes_xyxy, (people[0], 4))

    for person in zip(keypoints_px, sigma_px, drawn, boxes_xyxy, strict=True):
        _draw_person(canvas, *person, skeleton)
    return canvas


def draw_views(
    joints_mm: ArrayLike,
    skeleton: Skeleton,
    size_px: int,
    *,
    sigma_mm: ArrayLike | None = None,
    reference_mm: ArrayLike | None = None,
    yaws_deg: Sequence[float] = (45.0, 90.0),
) -> list[Image.Image]:
    """Draws a 3D pose as seen from around it, where a photograph does not show depth.

    The views are orthographic: a millimetre is as long at every depth. Each yaw takes the viewer
    about the vertical axis through the root, from the camera's place at 0 towards the camera's
    right: at 90 what was near is on the left, at 180 the person is seen from the other side.
    Colours, ellipses and what is left out are those of `draw_poses`, and nearer bones cover
    farther ones. A canvas is 2.4 m wide and high, more where the pose or its reference does not
    fit; all views have one scale, and a bar and a grid, whose lowest line is at the lowest joint,
    show it.

    Args:
        joints_mm: (K, 3) x to the right, y down, z away from the camera; the origin is anywhere.
            A camera that looks down on people makes them lean in views from the side.
        skeleton: Names and bones of the K joints. Without a root, or where the root is not
            finite, the axis is through the mean of the joints.
        size_px: Width and height of each picture.
        sigma_mm: (K, 3) standard deviations along x, y and z, independent of each other, or None
            for no ellipses.
        reference_mm: (K, 3) the true pose in the same coordinates, drawn in grey beneath.
        yaws_deg: One view each.

    Returns:
        New RGB images, one for each yaw, which a caption in the picture states.

    Raises:
        DataError: An array whose shape is not the above, no pixel or a yaw that is not finite.
    """
    shape = (len(skeleton.joints), 3)
    joints_mm = _finite(joints_mm)
    _check_shape("draw_views", "joints_mm", joints_mm, shape)
    sigma_mm = np.full(shape, np.nan) if sigma_mm is None else _finite(sigma_mm)
    _check_shape("draw_views", "sigma_mm", sigma_mm, shape)
    has_reference = reference_mm is not None
    reference_mm = _finite(reference_mm) if has_reference else np.full(shape, np.nan)
    _check_shape("draw_views", "reference_mm", reference_mm, shape)
    if size_px < 1 or not np.isfinite(yaws_deg).all():
        raise DataError(
            f"draw_views: found a size of {size_px} px and yaws of {list(yaws_deg)} deg, "
            "expected at least 1 px and finite yaws"
        )
    variances_mm2 = np.square(np.where(sigma_mm > 0, sigma_mm, np.nan))

    known_mm = np.concatenate([joints_mm, reference_mm])
    known_mm = known_mm[np.isfinite(known_mm).all(axis=-1)]
    if not len(known_mm):
        known_mm = np.zeros((1, 3))
    low_mm, high_mm = known_mm.min(axis=0), known_mm.max(axis=0)
    centre_mm = known_mm.mean(axis=0)
    if skeleton.root is not None and np.isfinite(joints_mm[skeleton.root]).all():
        centre_mm = joints_mm[skeleton.root].copy()
    centre_mm[1] = (low_mm[1] + high_mm[1]) / 2
    # What fits at one yaw fits at all: the scale depends on the distance from the axis.
    radius_mm = np.hypot(*(known_mm - centre_mm)[:, [0, 2]].T).max()
    extent_mm = max(2 * radius_mm, high_mm[1] - low_mm[1])
    px_per_mm = size_px / max(_VIEW_MM, extent_mm / _FILLED)
    middle_px = (size_px - 1) / 2
    ground_px = middle_px + px_per_mm * (high_mm[1] - centre_mm[1])

    views = []
    for yaw_deg in yaws_deg:
        cos, sin = np.cos(np.deg2rad(yaw_deg)), np.sin(np.deg2rad(yaw_deg))
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        canvas = _stage(size_px, px_per_mm, ground_px, _viewpoint(yaw_deg), has_reference)
        sigma_px = px_per_mm * np.sqrt(variances_mm2 @ np.square(turn).T)
        for pose_mm, spread_px, colours in (
            (reference_mm, np.full_like(sigma_px, np.nan), _REFERENCE_COLOURS),
            (joints_mm, sigma_px, SIDE_COLOURS),
        ):
            turned_mm = (pose_mm - centre_mm) @ turn.T
            depths_mm = [turned_mm[list(bone), 2].sum() for bone in skeleton.bones]
            far_to_near = tuple(skeleton.bones[i] for i in np.argsort(np.negative(depths_mm)))
            _draw_person(
                canvas,
                middle_px + px_per_mm * turned_mm[:, :2],
                spread_px[:, :2],
                np.isfinite(turned_mm).all(axis=-1),
                np.full(4, np.nan),
                replace(skeleton, bones=far_to_near),
                colours,
                max(1.2, 0.008 * size_px),
            )
        views.append(canvas)
    return views


def contact_sheet(
    images: Sequence[Image.Image], columns: int, labels: Sequence[str] | None = None
) -> Image.Image:
    """Lays images out in rows of equal cells, from left to right, on white.

    Args:
        images: At least one. A cell is as large as the widest and the highest of them; smaller
            ones are centred in it and keep their size.
        columns: Cells in a row.
        labels: A caption for each image, shortened where it is wider than the cell.

    Returns:
        A new RGB image.

    Raises:
        DataError: There is no image or no column, or not one label for each image.
    """
    if not images or columns < 1:
        raise DataError(
            f"contact_sheet: found {len(images)} images and {columns} columns, "
            "expected at least one of each"
        )
    if labels is not None and len(labels) != len(images):
        raise DataError(
            f"contact_sheet: found {len(labels)} labels for {len(images)} images, "
            "expected one for each"
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    gap = max(2, round(0.03 * min(width, height)))
    font = ImageFont.load_default(size=max(10.0, 0.05 * width))
    caption = 0 if labels is None else sum(font.getmetrics()) + gap // 2

    step_x, step_y = width + gap, height + caption + gap
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        x = gap + index % columns * step_x
        y = gap + index // columns * step_y
        place = (x + (width - image.width) // 2, y + (height - image.height) // 2)
        sheet.paste(image.convert("RGB"), place)
        if labels is not None:
            text = _shortened(labels[index], font, width)
            draw.text((x + width / 2, y + height + gap // 2), text, (40, 40, 40), font, "ma")
    return sheet


def _canvas(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        # convert() hands a copy back for an image that is RGB already, too.
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"draw_poses: found an image of {array.dtype} {array.shape}, "
            "expected uint8 (H, W, 3) or a Pillow image"
        )
    return Image.fromarray(array.copy())


def _viewpoint(yaw_deg: float) -> str:
    """The words for a yaw, which counts from the camera to its right."""
    around_deg = round((yaw_deg + 180) % 360 - 180)
    if around_deg == 0:
        return "from the camera"
    if abs(around_deg) == 180:
        return "from opposite the camera"
    return f"from {abs(around_deg)}\u00b0 to the camera's {'right' if around_deg > 0 else 'left'}"


def _stage(
    size_px: int, px_per_mm: float, ground_px: float, caption: str, has_reference: bool
) -> Image.Image:
    """An empty canvas with a grid about its middle column and up from the ground, a bar as long
    as the grid is wide, and writing."""
    canvas = Image.new("RGB", (size_px, size_px), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    # Half a metre, and ten times that as often as it takes where a pose is absurdly large.
    step_mm = 500 * 10.0 ** max(0, np.ceil(np.log10(size_px / px_per_mm / 12 / 500)))
    step_px = step_mm * px_per_mm
    line_px = max(1, round(size_px / 400))
    middle_px = (size_px - 1) / 2
    for index in range(-12, 13):
        x = round(middle_px + index * step_px)
        draw.line((x, 0, x, ground_px), _GRID, line_px)
    for index in range(25):
        y = round(ground_px - index * step_px)
        draw.line((0, y, size_px, y), _GRID if index else _GROUND, line_px)

    margin_px = max(2, round(0.03 * size_px))
    font = ImageFont.load_default(size=max(10.0, 0.042 * size_px))
    low_px = size_px - margin_px
    draw.line((margin_px, low_px, margin_px + step_px, low_px), _TEXT, 2 * line_px)
    for anchor, x, y, text in (
        ("la", margin_px, margin_px, caption),
        ("ls", margin_px, low_px - margin_px // 2 - line_px, f"{step_mm / 1000:g} m"),
        ("rs", low_px, low_px - margin_px // 2 - line_px, "grey: reference" * has_reference),
    ):
        draw.text((x, y), _shortened(text, font, size_px - 2 * margin_px), _TEXT, font, anchor)
    return canvas


def _finite(array: ArrayLike) -> np.ndarray:
    """Float64 with NaN for infinity and nothing so far out that its square would overflow."""
    array = np.asarray(array, float)
    return np.where(np.isfinite(array), np.clip(array, -_FAR_PX, _FAR_PX), np.nan)


def _check_shape(where: str, name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise DataError(f"{where}: found {name} of shape {array.shape}, expected {expected}")


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _line_width_px(canvas: Image.Image, points_px: np.ndarray) -> float:
    """A width that suits the person, visible in the whole image, and no less than a pixel."""
    extent_px = np.hypot(*np.ptp(points_px, axis=0))
    image_px = max(canvas.size)
    # A person in the background of a large photograph gets lines that survive scaling the
    # photograph down to a screen; the upper limit is for poses that reach far outside.
    return float(np.clip(0.010 * extent_px, max(1.2, 0.002 * image_px), max(1.2, 0.01 * image_px)))


def _draw_person(
    canvas: Image.Image,
    keypoints_px: np.ndarray,
    sigma_px: np.ndarray,
    drawn: np.ndarray,
    box_xyxy: np.ndarray,
    skeleton: Skeleton,
    side_colours: Mapping[str, tuple[int, int, int]] = SIDE_COLOURS,
    line_px: float | None = None,
) -> None:
    boxed = np.isfinite(box_xyxy).all()
    if not drawn.any() and not boxed:
        return
    corners_px = box_xyxy.reshape(2, 2)
    if line_px is None:
        line_px = _line_width_px(canvas, corners_px if boxed else keypoints_px[drawn])
    casing_px = max(1.0, 0.5 * line_px)

    if boxed:
        (x0, y0), (x1, y1) = corners_px
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        sides = list(zip(corners, np.roll(corners, -1, axis=0), strict=True))
        for start, end in sides:
            _line(canvas, start, end, 0.5 * line_px + casing_px, _CASING, 0.35)
        for start, end in sides:
            _line(canvas, start, end, 0.5 * line_px, SIDE_COLOURS["middle"], 0.9)

    colours = [side_colours[skeleton.side(joint)] for joint in range(len(drawn))]
    with_sigma = np.flatnonzero(drawn & (sigma_px > 0).all(axis=-1))
    outline_px = max(1.0, 0.5 * line_px)
    for joint in with_sigma:
        two_sigma_px = 2 * sigma_px[joint]
        _ellipse(canvas, keypoints_px[joint], two_sigma_px, 0, colours[joint], 0.16)
        _ellipse(canvas, keypoints_px[joint], two_sigma_px, outline_px, colours[joint], 0.75)
    for joint in with_sigma:
        _ellipse(canvas, keypoints_px[joint], sigma_px[joint], 0, colours[joint], 0.30)

    bones = [bone for bone in skeleton.bones if drawn[list(bone)].all()]
    for start, end in bones:
        width_px = line_px + casing_px
        _line(canvas, keypoints_px[start], keypoints_px[end], width_px, _CASING, 0.45)
    for start, end in bones:
        ends = {skeleton.side(start), skeleton.side(end)} - {"middle"}
        side = ends.pop() if len(ends) == 1 else "middle"
        _line(canvas, keypoints_px[start], keypoints_px[end], line_px, side_colours[side], 1.0)

    radius_px = max(1.5, line_px)
    for joint in np.flatnonzero(drawn):
        rim_px = np.full(2, radius_px + casing_px / 2)
        _ellipse(canvas, keypoints_px[joint], rim_px, 0, _CASING, 0.8)
        _ellipse(canvas, keypoints_px[joint], np.full(2, radius_px), 0, colours[joint], 1.0)


def _patches(
    canvas: Image.Image, low: np.ndarray, high: np.ndarray
) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the canvas around the region from `low` to `high`, in bands of rows
    that bound the memory that drawing takes; nothing where the region is outside."""
    x0, y0 = np.maximum(np.floor(low), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(high) + 1, canvas.size).astype(int)
    if x0 < x1:
        rows = max(1, 2**18 // (x1 - x0))
        for y in range(y0, y1, rows):
            yield slice(y, min(y + rows, y1)), slice(x0, x1)


def _blend(
    canvas: Image.Image,
    patch: tuple[slice, slice],
    coverage: np.ndarray,
    colour: tuple[int, int, int],
    opacity: float,
) -> None:
    rows, columns = patch
    mask = Image.fromarray(np.rint(255 * opacity * coverage).astype(np.uint8))
    canvas.paste(colour, (columns.start, rows.start), mask)


def _line(
    canvas: Image.Image,
    start: np.ndarray,
    end: np.ndarray,
    width_px: float,
    colour: tuple[int, int, int],
    opacity: float,
) -> None:
    """Draws a line with round ends; its soft edge is the distance to the segment."""
    margin = width_px / 2 + 0.5
    along_x, along_y = end - start
    length2 = max(along_x**2 + along_y**2, 1e-12)
    low, high = np.minimum(start, end) - margin, np.maximum(start, end) + margin
    for rows, columns in _patches(canvas, low, high):
        x = np.arange(columns.start, columns.stop) - start[0]
        y = np.arange(rows.start, rows.stop)[:, None] - start[1]
        nearest = np.clip((x * along_x + y * along_y) / length2, 0, 1)
        distance_px = np.hypot(x - nearest * along_x, y - nearest * along_y)
        coverage = np.clip(margin - distance_px, 0, 1)
        _blend(canvas, (rows, columns), coverage, colour, opacity)


def _ellipse(
    canvas: Image.Image,
    centre: np.ndarray,
    axes_px: np.ndarray,
    outline_px: float,
    colour: tuple[int, int, int],
    opacity: float,
) -> None:
    """Draws an ellipse with the given semi-axes: filled, or where `outline_px` is not 0 a line
    of that width just inside its edge."""
    axes_px = np.maximum(axes_px, 0.05)  # narrower cannot be seen
    inner_px = axes_px - outline_px
    hollow = outline_px > 0 and (inner_px > 0).all()
    for patch in _patches(canvas, centre - axes_px - 0.5, centre + axes_px + 0.5):
        coverage = _ellipse_coverage(patch, centre, axes_px)
        if hollow:
            coverage -= _ellipse_coverage(patch, centre, inner_px)
        _blend(canvas, patch, coverage, colour, opacity)


def _ellipse_coverage(
    patch: tuple[slice, slice], centre: np.ndarray, axes_px: np.ndarray
) -> np.ndarray:
    """The share of each pixel of the patch that is inside the ellipse."""
    rows, columns = patch
    samples = 4  # per row; along a row the overlap is exact
    y = rows.start - 0.5 + (np.arange((rows.stop - rows.start) * samples) + 0.5) / samples
    half_px = axes_px[0] * np.sqrt(np.maximum(1 - ((y - centre[1]) / axes_px[1]) ** 2, 0))
    half_px = half_px.reshape(-1, samples, 1).astype(np.float32)
    x = np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(centre[0])
    overlap = np.minimum(x + 0.5, half_px) - np.maximum(x - 0.5, -half_px)
    return np.maximum(overlap, 0).mean(axis=1)
