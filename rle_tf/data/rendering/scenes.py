"""People among clutter, behind occluders and over the edge of the picture."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from rle_tf.data.rendering.bodies import Camera, Pose, in_camera, look, sample_body, sample_pose
from rle_tf.data.rendering.renderer import (
    SEEN_TOLERANCE,
    Layer,
    Light,
    Outfit,
    random_colour,
    render,
    sample_outfit,
)
from rle_tf.skeletons import COCO17

# Rendered this much larger and reduced: anti-aliasing.
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Scene:
    """One finished picture.

    Attributes:
        image: (H, W, 3) uint8.
        keypoints: (P, 17, 3) of x, y in pixels and COCO's visibility 0, 1 or 2.
        masks: (P, sH, sW) bool silhouettes before occlusion, s = 2 samples a pixel each way.
        shown: (P,) share of each silhouette that nothing hides.
    """

    image: np.ndarray
    keypoints: np.ndarray
    masks: np.ndarray
    shown: np.ndarray


def _fill(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in np.clip(colour, 0, 255))
    return red, green, blue


def _bent_bar(rng: np.random.Generator, start: np.ndarray, length: float) -> list[tuple]:
    angle = rng.uniform(0, 2 * math.pi)
    points = [start]
    for _ in range(2):
        points.append(points[-1] + length / 2 * np.array([math.cos(angle), math.sin(angle)]))
        angle += rng.uniform(-1.5, 1.5)
    return [tuple(point) for point in points]


def _thick_line(
    draw: ImageDraw.ImageDraw, points: list[tuple], fill: int | tuple[int, int, int], width: int
) -> None:
    draw.line(points, fill=fill, width=width, joint="curve")
    for x, y in (points[0], points[-1]):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=fill)


def _background(
    rng: np.random.Generator, size: tuple[int, int], colours: list[np.ndarray]
) -> Image.Image:
    """A smooth field of colours and noise, with clutter, some of it in the people's colours."""
    height, width = size
    side = max(size)
    coarse = (width // SUPERSAMPLING, height // SUPERSAMPLING)
    grid = np.stack([random_colour(rng) for _ in range(4)]).reshape(2, 2, 3)
    field = Image.fromarray(grid.astype(np.uint8)).resize(coarse, Image.BILINEAR)
    cells = int(rng.integers(4, 60))
    noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
    field = Image.blend(field, noise.resize(coarse, Image.BILINEAR), rng.uniform(0, 0.25))
    field = field.resize((width, height), Image.NEAREST)
    draw = ImageDraw.Draw(field)
    for _ in range(rng.integers(2, 14)):
        kind = rng.choice(["box", "ellipse", "line", "bar"], p=[0.3, 0.2, 0.2, 0.3])
        alike = rng.random() < 0.4
        fill = _fill(
            colours[rng.integers(len(colours))] * rng.uniform(0.7, 1.1)
            if alike
            else random_colour(rng)
        )
        centre = rng.uniform(0, 1, 2) * (width, height)
        half = rng.uniform(0.02, 0.25, 2) * side
        corners = (*(centre - half), *(centre + half))
        if kind == "box":
            draw.rectangle(corners, fill=fill)
        elif kind == "ellipse":
            draw.ellipse(corners, fill=fill)
        elif kind == "line":
            end = rng.uniform(0, 1, 2) * (width, height)
            draw.line([tuple(centre), tuple(end)], fill=fill, width=int(rng.integers(1, 8)))
        else:
            thickness = int(side * rng.uniform(0.02, 0.07))
            _thick_line(draw, _bent_bar(rng, centre, side * rng.uniform(0.1, 0.5)), fill, thickness)
    return field


def _occlude(
    rng: np.random.Generator,
    picture: Image.Image,
    mask: Image.Image,
    box_xyxy: np.ndarray,
    colours: list[np.ndarray],
) -> None:
    """Draws a thing in front of the box into the picture, and where it is into the mask."""
    canvases = (ImageDraw.Draw(picture), ImageDraw.Draw(mask))
    extent = box_xyxy[2:] - box_xyxy[:2]
    centre = box_xyxy[:2] + extent * rng.uniform(0.05, 0.95, 2)
    tall = float(extent.max())
    base = colours[rng.integers(len(colours))] if rng.random() < 0.4 else random_colour(rng)
    kind = rng.choice(["box", "bar", "foliage"])
    if kind == "box":
        half = tall * rng.uniform(0.06, 0.24, 2)
        corners = [*(centre - half), *(centre + half)]
        for canvas, fill in zip(canvases, (_fill(base), 255), strict=True):
            canvas.rectangle(corners, fill=fill)
        corners[3] = centre[1] - half[1] * 0.7  # a lighter top, as a box has
        canvases[0].rectangle(corners, fill=_fill(base * 1.25 + 10))
    elif kind == "bar":
        points = _bent_bar(rng, centre, tall * rng.uniform(0.5, 1.5))
        width = int(max(3, tall * rng.uniform(0.03, 0.1)))
        for canvas, fill in zip(canvases, (_fill(base), 255), strict=True):
            _thick_line(canvas, points, fill, width)
    else:
        green = np.array([60.0, 110.0, 45.0]) * rng.uniform(0.6, 1.5)
        for _ in range(rng.integers(15, 45)):
            leaf = centre + rng.normal(0, 0.11 * tall, 2)
            turn, length = rng.uniform(0, math.pi), tall * rng.uniform(0.02, 0.07)
            along = length * np.array([math.cos(turn), math.sin(turn)])
            across = np.array([-along[1], along[0]]) * 0.4
            points = [tuple(leaf + way) for way in (-along, -across, along, across)]
            fill = _fill(green * rng.uniform(0.6, 1.3))
            canvases[0].polygon(points, fill=fill)
            canvases[1].polygon(points, fill=255)


def _place(
    rng: np.random.Generator, pose: Pose, camera: Camera, size: tuple[int, int], people: int
) -> Pose:
    """Puts a pose, which is around the world's origin, in front of the camera, in its axes."""
    height, width = size
    turned = in_camera(camera, pose)
    points = np.stack(list(turned.joints.values()))
    low, high = points.min(0) - 0.08, points.max(0) + 0.08
    extent = high - low
    # The share of the image that the person would fill; above 1 it is cut.
    fill = rng.uniform(0.5, 0.98) if people == 1 else rng.uniform(0.4, 0.8)
    cut = rng.random() < 0.22
    if cut:
        fill *= rng.uniform(1.0, 1.7)
    zoom = fill * min(height / extent[1], width / extent[0])
    depth = max(camera.focal_px / zoom, extent[2] / 2 + 0.5)
    zoom = camera.focal_px / depth
    room = np.array([width, height]) - extent[:2] * zoom
    shift = rng.uniform(-0.5, 0.5, 2) * np.maximum(room, 0)
    if cut:
        shift += rng.uniform(-0.4, 0.4, 2) * np.minimum(extent[:2] * zoom, (width, height))
    centre = np.array([width - 1, height - 1]) / 2 + shift
    target = np.append((centre - camera.centre_px) / camera.focal_px, 1) * depth
    offset = target - (low + high) / 2
    return Pose({name: point + offset for name, point in turned.joints.items()}, turned.rotations)


def sample_light(rng: np.random.Generator) -> Light:
    """A lamp above and before the people."""
    towards = np.array([rng.uniform(-0.8, 0.8), -rng.uniform(0.3, 1), -rng.uniform(0.4, 1)])
    return Light(towards / np.linalg.norm(towards), rng.uniform(0.35, 0.65))


def supersampled(camera: Camera) -> Camera:
    """The camera of the samples that pixels are the means of."""
    # Sample i of s a pixel is centred at (i + 0.5) / s - 0.5 pixels.
    return Camera(
        camera.focal_px * SUPERSAMPLING,
        (camera.centre_px + 0.5) * SUPERSAMPLING - 0.5,
        camera.rotation,
        camera.position,
    )


def compose(
    rng: np.random.Generator, layers: list[Layer], outfits: list[Outfit]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts people on a background, sometimes things before them, and reduces the samples.

    Args:
        rng: The source of chance.
        layers: P people, (sH, sW) samples each, s = `SUPERSAMPLING`.
        outfits: What they wear: some of the background and of the things has its colours.

    Returns:
        (H, W, 3) uint8 picture, and (sH, sW) int8 index of who shows in each sample or -1.
    """
    fine = layers[0].depth.shape
    colours = [
        material.colours[0]
        for outfit in outfits
        for material in (outfit.skin, outfit.shirt, outfit.trousers)
    ]
    picture, hiding = _background(rng, fine, colours), Image.new("L", fine[::-1])
    nearest = np.full(fine, np.inf, np.float32)
    owner = np.full(fine, -1, np.int8)
    for index, layer in enumerate(layers):
        front = layer.depth < nearest
        np.copyto(nearest, layer.depth, where=front)
        np.copyto(owner, index, where=front)
        picture.paste(Image.fromarray(layer.colour), mask=Image.fromarray(front))
    for layer in layers:
        if rng.random() < 0.3 and layer.mask.any():
            _occlude(rng, picture, hiding, box_xyxy(layer.mask), colours)
    owner[np.asarray(hiding) > 0] = -1

    small = np.asarray(picture.reduce(SUPERSAMPLING), np.float32)  # the mean of the samples
    grain = rng.standard_normal(small.shape, np.float32) * rng.uniform(0, 9)
    pixels = small * rng.uniform(0.8, 1.1) + rng.uniform(-12, 18) + grain
    return np.clip(pixels, 0, 255).astype(np.uint8), owner


def _try_scene(rng: np.random.Generator, size: tuple[int, int], people: int) -> Scene:
    height, width = size
    fine = (height * SUPERSAMPLING, width * SUPERSAMPLING)
    focal = max(size) * rng.uniform(1.4, 3.5)
    middle = (np.array([width, height]) - 1) / 2
    camera = Camera(focal, middle, look(rng.uniform(-8, 25), rng.normal(0, 4)), np.zeros(3))
    light = sample_light(rng)

    poses, layers, outfits = [], [], []
    for _ in range(people):
        body, outfit = sample_body(rng), sample_outfit(rng)
        pose = _place(rng, sample_pose(rng, body), camera, size, people)
        poses.append(pose)
        outfits.append(outfit)
        layers.append(render(body, pose, outfit, supersampled(camera), light, fine))
    image, owner = compose(rng, layers, outfits)

    masks = np.stack([layer.mask for layer in layers])
    keypoints = np.zeros((people, len(COCO17.joints), 3))
    shown = np.zeros(people)
    for index, (pose, layer) in enumerate(zip(poses, layers, strict=True)):
        joints = pose.coco()
        xy = camera.project(joints)
        inside = ((xy >= 0) & (xy <= (width - 1, height - 1))).all(1)
        columns, rows = np.rint((xy[inside].T + 0.5) * SUPERSAMPLING - 0.5).astype(int)
        surface = layer.depth[rows, columns]
        seen = (owner[rows, columns] == index) & (
            joints[inside, 2] - surface < SEEN_TOLERANCE[inside]
        )
        keypoints[index, inside, :2] = xy[inside]
        keypoints[index, inside, 2] = 1 + seen
        shown[index] = (owner == index).sum() / max(masks[index].sum(), 1)
    return Scene(image, keypoints, masks, shown)


def sample_scene(rng: np.random.Generator, size: tuple[int, int], people: int) -> Scene:
    """A picture of people, each with at least 4 joints in the image and a third of it shown.

    Args:
        rng: The source of chance.
        size: (height, width), pixels.
        people: How many.
    """
    while True:
        scene = _try_scene(rng, size, people)
        labelled = (scene.keypoints[..., 2] > 0).sum(1)
        large = scene.masks.mean((1, 2)) > 0.01
        if (labelled >= 4).all() and (scene.shown > 0.33).all() and large.all():
            return scene


def box_xyxy(mask: np.ndarray) -> np.ndarray:
    """(4,) edges of a mask that is not empty, in its own samples."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
