"""From a posed body to pixels and depths.

Every body part is a round cone (a capsule with two radii, stretched where a body is flat) that
each pixel's ray is intersected with, so that self-occlusion, occlusion between people and each
joint's visibility come from one depth map. Left and right limbs wear the same colours: only the
body's shape and face tell them apart.
"""

from dataclasses import dataclass

import numpy as np

from rle_tf.data.rendering.bodies import SIDES, Body, Camera, Pose
from rle_tf.skeletons import COCO17


@dataclass(frozen=True)
class Material:
    """A surface: two colours (2, 3) in 0..255 and the (N, N) share of the second, a pattern.

    The pattern's first axis runs along a part, `per_metre` cells a metre; its second, around it.
    """

    colours: np.ndarray
    pattern: np.ndarray
    per_metre: float = 60.0


@dataclass(frozen=True)
class Outfit:
    """What a person wears and looks like; a sleeve of 0.5 covers half of its segment."""

    skin: Material
    hair: Material
    shirt: Material
    trousers: Material
    shoes: Material
    upper_sleeve: float
    lower_sleeve: float
    upper_leg: float
    lower_leg: float
    haircut: str


@dataclass(frozen=True)
class _Part:
    """A round cone from `a` to `b` (3,), radii metres, in camera axes; a ball where a is b.

    Neither end's sphere may hold the other's.

    `stretch`, where given, is (frame (3, 3), factors (3,)): the cone is stretched by the factors
    along the frame's columns. `rest` is the material beyond the share `split` of the axis.
    """

    a: np.ndarray
    b: np.ndarray
    radius_a: float
    radius_b: float
    material: Material
    stretch: tuple[np.ndarray, np.ndarray] | None = None
    split: float = 1.0
    rest: Material | None = None


def _plain(colour: np.ndarray) -> Material:
    return Material(np.stack([colour, colour]).astype(np.float32), np.zeros((1, 1), np.float32))


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """(3,) in 0..255: any hue, often greyish, as clothes and walls are."""
    hue, value = rng.uniform(0, 6), 255 * rng.uniform(0.12, 1.0)
    saturation = rng.uniform(0, 0.9) * rng.uniform(0.3, 1.0)
    channel = (np.array([5.0, 3.0, 1.0]) + hue) % 6
    return value * (1 - saturation * np.clip(np.minimum(channel, 4 - channel), 0, 1))


def _skin(rng: np.random.Generator) -> np.ndarray:
    tones = np.array([(245, 212, 185), (224, 172, 132), (160, 105, 72), (84, 54, 40)], float)
    position = rng.uniform(0, len(tones) - 1.001)
    low = int(position)
    tone = tones[low] + (tones[low + 1] - tones[low]) * (position - low)
    return np.clip(tone + rng.normal(0, 6, 3), 0, 255)


def _cloth(rng: np.random.Generator) -> Material:
    base = random_colour(rng)
    second = random_colour(rng) if rng.random() < 0.5 else base * rng.uniform(0.55, 0.8)
    size = 16
    kind = rng.choice(["plain", "rings", "stripes", "checks", "noise"], p=[0.4, 0.2, 0.1, 0.1, 0.2])
    band = (np.arange(size) // rng.integers(2, 6) % 2).astype(np.float32)
    pattern = {
        "plain": np.zeros((size, size)),
        "rings": np.tile(band[:, None], size),
        "stripes": np.tile(band, (size, 1)),
        "checks": (band[:, None] + band) / 2,
        "noise": rng.random((size, size)) * rng.uniform(0.3, 1),
    }[kind]
    return Material(
        np.stack([base, second]).astype(np.float32),
        pattern.astype(np.float32),
        rng.uniform(50, 110),
    )


def sample_outfit(rng: np.random.Generator) -> Outfit:
    """Clothes, skin and hair; the same on the left and on the right."""
    hair = np.array([(28, 22, 20), (72, 46, 28), (150, 110, 60), (215, 185, 120), (140, 138, 136)])
    short_sleeves, shorts = rng.random() < 0.5, rng.random() < 0.3
    sleeveless = short_sleeves and rng.random() < 0.25
    hairs = Material(
        (hair[rng.integers(len(hair))] * rng.uniform([[0.8], [0.6]], [[1.15], [0.8]])).astype(
            np.float32
        ),
        rng.random((16, 16)).astype(np.float32),
    )
    return Outfit(
        skin=_plain(_skin(rng)),
        hair=hairs,
        shirt=_cloth(rng),
        trousers=_cloth(rng),
        shoes=_plain(random_colour(rng)),
        upper_sleeve=0.0 if sleeveless else rng.uniform(0.4, 0.9) if short_sleeves else 1.0,
        lower_sleeve=0.0 if short_sleeves else rng.uniform(0.6, 1.0),
        upper_leg=rng.uniform(0.45, 1.0) if shorts else 1.0,
        lower_leg=0.0 if shorts else rng.uniform(0.75, 1.0),
        haircut=str(rng.choice(["short", "long", "bald"], p=[0.55, 0.33, 0.12])),
    )


def _parts(body: Body, pose: Pose, outfit: Outfit) -> list[_Part]:
    """The parts of a person whose pose is in camera axes."""
    joints, turns = pose.joints, pose.rotations
    # Thickness grows with the height, a head's much less with the girth.
    size = body.height / 1.7
    thick = size * body.girth
    parts = []

    def at(joint: str, segment: str, offset: tuple[float, float, float]) -> np.ndarray:
        return joints[joint] + turns[segment] @ (np.array(offset) * size)

    # Trunk: pelvis, belly and chest are wider than deep; the shoulders round off the chest.
    wide = np.linalg.norm(joints["left_shoulder"] - joints["right_shoulder"]) / 2
    flat = np.array([1.0, 1.0, 0.68])
    waist = at("torso", "abdomen", (0, -0.02, 0))
    parts += [
        _Part(
            at("pelvis", "pelvis", (0, -0.02, -0.005)), at("pelvis", "pelvis", (0, 0.06, 0)),
            0.158 * thick, 0.145 * thick, outfit.trousers, (turns["pelvis"], flat),
        ),
        _Part(
            at("pelvis", "pelvis", (0, 0.075, 0)), waist,
            0.146 * thick, 0.138 * thick, outfit.shirt, (turns["abdomen"], flat),
        ),
        _Part(
            waist, at("thorax", "chest", (0, -0.13, 0.0)),
            0.138 * thick, 0.158 * thick, outfit.shirt, (turns["chest"], flat),
        ),
        _Part(
            at("thorax", "chest", (-0.62 * wide / size, -0.035, 0)),
            at("thorax", "chest", (0.62 * wide / size, -0.035, 0)),
            0.068 * thick, 0.068 * thick, outfit.shirt,
        ),
        _Part(
            at("thorax", "chest", (0, -0.02, 0)), at("neck", "head", (0, 0.03, 0.005)),
            0.056 * thick, 0.05 * size, outfit.skin,
        ),
    ]  # fmt: skip
    for side, _ in SIDES:
        limbs = (
            # from, to, radii, cloth, its share of the segment
            ("shoulder", "elbow", 0.056, 0.043, outfit.shirt, outfit.upper_sleeve),
            ("elbow", "wrist", 0.043, 0.029, outfit.shirt, outfit.lower_sleeve),
            ("wrist", "hand", 0.03, 0.032, outfit.skin, 1.0),
            ("hip", "knee", 0.086, 0.058, outfit.trousers, outfit.upper_leg),
            ("knee", "ankle", 0.058, 0.038, outfit.trousers, outfit.lower_leg),
            ("ankle", "heel", 0.038, 0.036, outfit.shoes, 1.0),
            ("heel", "toe", 0.038, 0.032, outfit.shoes, 1.0),
        )
        for start, end, radius_a, radius_b, cloth, share in limbs:
            parts.append(
                _Part(
                    joints[f"{side}_{start}"], joints[f"{side}_{end}"],
                    radius_a * thick, radius_b * thick, cloth, split=share, rest=outfit.skin,
                )
            )  # fmt: skip

    # The head: an ellipsoid, with what tells its front from its back. Lengths from here on are in
    # half heads, so that the face fits the skull.
    frame = turns["head"]
    half = float(np.linalg.norm(joints["head_top"] - joints["neck"])) / 2
    middle = (joints["head_top"] + joints["neck"]) / 2 + frame @ (0, 0.045 * half, 0.09 * half)
    skull = np.array([0.76, 1.08, 0.9])

    def ball(centre: np.ndarray, radii: np.ndarray | tuple, material: Material) -> None:
        stretch = (frame, np.asarray(radii) * half)
        parts.append(_Part(centre, centre, 1.0, 1.0, material, stretch))

    def bar(joint: str, left: tuple, right: tuple, radius: float, material: Material) -> None:
        ends = (joints[joint] + frame @ np.array(end) * half for end in (left, right))
        parts.append(_Part(*ends, radius * half, radius * half, material))

    ball(middle, skull, outfit.skin)
    if outfit.haircut != "bald":
        ball(middle + frame @ (0, 0.26 * half, -0.24 * half), skull * 1.06, outfit.hair)
    if outfit.haircut == "long":
        nape = at("thorax", "chest", (0, -0.03, -0.085))
        crown = middle + frame @ (0, -0.1 * half, -0.5 * half)
        thin = (frame, np.array([1.0, 1.0, 0.6]))
        parts.append(_Part(crown, nape, 0.8 * half, 0.68 * half, outfit.hair, thin))
    dark, white, red = (_plain(np.array(c)) for c in ((22, 18, 20), (240, 240, 240), (150, 60, 60)))
    bar("nose", (0, 0.25, -0.15), (0, -0.03, -0.04), 0.12, outfit.skin)
    bar("nose", (-0.2, -0.4, -0.15), (0.2, -0.4, -0.15), 0.075, red)
    for side, sign in SIDES:
        eye = joints[f"{side}_eye"]
        ball(eye - frame @ (0, 0, 0.04 * half), (0.21, 0.16, 0.13), white)
        ball(eye + frame @ (0, 0, 0.05 * half), (0.12, 0.12, 0.08), dark)
        bar(f"{side}_eye", (-0.16, 0.27, -0.03), (0.16, 0.27, -0.03), 0.055, outfit.hair)
        ear = joints[f"{side}_ear"] + frame @ (sign * 0.05 * half, 0, 0)
        ball(ear, (0.14, 0.3, 0.2), outfit.skin)
    return parts


@dataclass(frozen=True)
class Layer:
    """One person drawn alone.

    Attributes:
        depth: (H, W) float32, metres along the view; infinite where the person is not.
        colour: (H, W, 3) uint8; undefined where the person is not.
    """

    depth: np.ndarray
    colour: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: the silhouette."""
        return np.isfinite(self.depth)


@dataclass(frozen=True)
class Light:
    """A lamp: `direction` (3,) unit vector towards it, in camera axes, and the share that is
    there without it."""

    direction: np.ndarray
    ambient: float


def _draw_part(
    part: _Part, light: Light, slopes: tuple[np.ndarray, np.ndarray], layer: Layer, camera: Camera
) -> None:
    """Draws a part into a layer where it is nearer than what is there.

    A ray is depth * (x, y, 1), with (x, y) its slopes, so that the unknown of each quadratic is
    the depth itself. The envelope of the spheres along the axis, centre a + s (b - a) and radius
    r_a + s (r_b - r_a), is a cone where 0 < s < 1 and a sphere's cap beyond either end.
    """
    reach = max(part.radius_a, part.radius_b)
    to_round = np.eye(3)
    if part.stretch is not None:
        frame, factors = part.stretch
        to_round, reach = frame.T / factors[:, None], reach * factors.max()
    near = float(min(part.a[2], part.b[2]) - reach)
    if near < 0.05:
        return
    ends = camera.project(np.array([part.a, part.b]))
    margin = 1.15 * camera.focal_px * reach / near + 1
    xs, ys = slopes
    low = np.maximum(np.floor(ends.min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(ends.max(0) + margin), (len(xs), len(ys))).astype(int)
    if (high <= low).any():
        return
    x, y = xs[None, low[0] : high[0]], ys[low[1] : high[1], None]

    def along(vector: np.ndarray) -> np.ndarray:
        """Dot product of the rays, made round, and a vector of the round space."""
        gx, gy, gz = (to_round.T @ vector).tolist()
        return (gx * x + gz) + gy * y

    metric = to_round.T @ to_round
    (xx, xy, xz), (_, yy, yz), (_, _, zz) = metric.tolist()
    squared = (xx * x * x + 2 * xz * x + zz) + (yy * y * y + 2 * yz * y)
    if part.stretch is not None:
        squared += (2 * xy * x) * y
    a, b = to_round @ part.a, to_round @ part.b
    axis = b - a
    shrink = part.radius_a - part.radius_b
    inner = float(axis @ axis - shrink**2)

    # Discriminants everywhere, roots only where the part is and nothing nearer has been drawn.
    along_a = along(a)
    root_a = along_a * along_a - squared * float(a @ a - part.radius_a**2)
    hit = root_a > 0
    if inner > 1e-8:
        along_axis = along(axis)
        along_b = along_a + along_axis
        root_b = along_b * along_b - squared * float(b @ b - part.radius_b**2)
        offset = float(a @ axis + shrink * part.radius_a)
        k2 = inner * squared - along_axis * along_axis
        k1 = inner * along_a - offset * along_axis
        k0 = inner * float(a @ a - part.radius_a**2) - offset**2
        root_cone = k1 * k1 - k0 * k2
        hit |= (root_b > 0) | (root_cone > 0)
    hit &= layer.depth[low[1] : high[1], low[0] : high[0]] > near
    rows, columns = np.nonzero(hit)
    if not len(rows):
        return

    def sphere(root: np.ndarray, product: np.ndarray) -> np.ndarray:
        root, product = root[hit], product[hit]
        return np.where(
            root > 0, (product - np.sqrt(np.maximum(root, 0))) / squared_hit, np.float32(np.inf)
        )

    squared_hit = squared[hit]
    depth = sphere(root_a, along_a)
    share = np.zeros_like(depth)
    if inner > 1e-8:
        depth_b = sphere(root_b, along_b)
        share[depth_b < depth] = 1
        depth = np.minimum(depth, depth_b)
        root, k2 = root_cone[hit], k2[hit]
        # k2 < 0: the ray crosses both nappes, and this root is where it enters the second one.
        on_cone = (root > 0) & (np.abs(k2) > 1e-9)
        cone = (k1[hit] - np.sqrt(np.maximum(root, 0))) / np.where(on_cone, k2, 1)
        cone_share = (cone * along_axis[hit] - offset) / inner
        on_cone &= (cone_share > 0) & (cone_share < 1)
        depth = np.where(on_cone, cone, depth)
        share = np.where(on_cone, cone_share, share)

    nearer = depth < layer.depth[rows + low[1], columns + low[0]]
    depth, share, rows, columns = depth[nearer], share[nearer], rows[nearer], columns[nearer]
    if not len(rows):
        return
    rays = np.stack([x[0, columns], y[rows, 0], np.ones_like(depth)])
    normal = (
        metric.astype(np.float32) @ (rays * depth)
        - (to_round.T @ a).astype(np.float32)[:, None]
        - (to_round.T @ axis).astype(np.float32)[:, None] * share
    )
    normal /= np.sqrt((normal * normal).sum(0)) + 1e-9
    lit = np.maximum(light.direction.astype(np.float32) @ normal, 0)
    # Darker towards the outline: limbs stand out from a trunk of the same colour.
    shade = (light.ambient + (1 - light.ambient) * lit) * (0.55 + 0.45 * np.abs(normal[2]))

    length = float(np.linalg.norm(part.b - part.a)) or 2 * reach

    def paint(material: Material) -> np.ndarray:
        cells = len(material.pattern)
        first, second = material.colours
        if cells == 1:
            return np.broadcast_to(first, (len(depth), 3))
        u = (share * (length * material.per_metre)).astype(int) % cells
        v = ((normal[0] + 1) * (reach * material.per_metre * 1.5)).astype(int) % cells
        return first + (second - first) * material.pattern[u, v][:, None]

    colour = paint(part.material)
    if part.rest is not None and part.split < 1:
        colour = np.where((share < part.split)[:, None], colour, paint(part.rest))
    rows, columns = rows + low[1], columns + low[0]
    layer.depth[rows, columns] = depth
    layer.colour[rows, columns] = np.minimum(colour * shade[:, None] * 1.2, 255)


def render(
    body: Body, pose: Pose, outfit: Outfit, camera: Camera, light: Light, size: tuple[int, int]
) -> Layer:
    """Draws one person.

    Args:
        body: The proportions.
        pose: The pose in camera axes, from `in_camera`.
        outfit: Clothes, skin and hair.
        camera: Its focal length and centre in the pixels of `size`.
        light: The lamp.
        size: (height, width) of the layer, pixels.
    """
    height, width = size
    xs = ((np.arange(width) - camera.centre_px[0]) / camera.focal_px).astype(np.float32)
    ys = ((np.arange(height) - camera.centre_px[1]) / camera.focal_px).astype(np.float32)
    layer = Layer(np.full(size, np.inf, np.float32), np.zeros((height, width, 3), np.uint8))
    # Nearest first: what it hides needs no colour.
    for part in sorted(_parts(body, pose, outfit), key=lambda part: part.a[2] + part.b[2]):
        _draw_part(part, light, (xs, ys), layer, camera)
    return layer


# A joint counts as seen where the surface in front of it is no farther than its limb is thick.
_SEEN_WITHIN = {
    "nose": 0.035, "eye": 0.03, "ear": 0.045, "shoulder": 0.11, "elbow": 0.075, "wrist": 0.06,
    "hip": 0.15, "knee": 0.09, "ankle": 0.07,
}  # fmt: skip
SEEN_TOLERANCE = np.array([_SEEN_WITHIN[name.split("_")[-1]] for name in COCO17.joints])
