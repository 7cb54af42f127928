"""Generated clips: textured objects that move over a textured, itself moving background.

They need no download and come with exact masks, so they serve smoke runs, tests and demonstrations.
They are a stand-in for video, not a substitute for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# The background texture reaches this share of the frame beyond each border, so that the camera
# can pan without showing an edge.
MARGIN = 0.35
MAX_OBJECTS = 3
NUM_HARMONICS = 5
PERIOD_FRAMES = (28.0, 64.0)


def generate_clip(
    num_frames: int, height: int, width: int, seed: int, *, num_objects: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Returns a clip of moving objects and the mask of everything that moves on its own.

    Each object is a closed, smooth outline with its own texture and shading; it circles slowly,
    turns and changes its size a little. The camera pans, turns and zooms over a background that
    also holds still shapes, so that appearance alone does not give the objects away. Objects stay
    in view however long the clip is, and adjacent frames always differ.

    Args:
        num_frames: Number of frames T, at least 1.
        height: Height in pixels, at least 16.
        width: Width in pixels, at least 16.
        seed: Non-negative seed; the same arguments give the same clip.
        num_objects: Number of objects from 1 to 3; drawn from the seed where it is None.

    Returns:
        Frames of shape (T, H, W, 3), uint8 RGB, and masks of shape (T, H, W), True on objects.

    Raises:
        ValueError: If a size, the seed or the number of objects is out of range.
    """
    _check(num_frames, height, width, seed, num_objects)
    generator = np.random.default_rng([seed, height, width])
    if num_objects is None:
        num_objects = int(generator.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))
    short = min(height, width)
    camera = _Path.camera(generator, short)
    background = _background(generator, height, width)
    objects = [_MovingObject.draw(generator, height, width) for _ in range(num_objects)]
    noise = float(generator.uniform(0.5, 2.5))

    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    masks = np.zeros((num_frames, height, width), dtype=bool)
    for t in range(num_frames):
        view = _sample(background, camera, t, (height, width))
        for moving in objects:
            alpha, color = moving.render(t, height, width)
            view += alpha[..., None] * (color - view)
            masks[t] |= alpha > 0.5
        view += generator.normal(0.0, noise, size=view.shape).astype(np.float32)
        frames[t] = np.clip(np.rint(view), 0, 255).astype(np.uint8)
    return frames, masks


def _check(num_frames: int, height: int, width: int, seed: int, num_objects: int | None) -> None:
    """Raises a ValueError for arguments that `generate_clip` cannot use."""
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
    if min(height, width) < 16:
        raise ValueError(f"`height` and `width` must be at least 16, got {height} x {width}.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    if num_objects is not None and not 1 <= num_objects <= MAX_OBJECTS:
        raise ValueError(f"`num_objects` must be from 1 to {MAX_OBJECTS}, got {num_objects}.")


@dataclass(frozen=True)
class _Path:
    """A smooth motion without standstill: an ellipse in x and y, a swing in angle and scale."""

    center: tuple[float, float]
    amplitude: tuple[float, float]
    phase: tuple[float, float]
    period: float
    swing: float
    zoom: float

    @classmethod
    def camera(cls, generator: np.random.Generator, short: int) -> _Path:
        """Returns a pan of a few percent of the short side around the middle of the texture."""
        x, y = generator.uniform(0.05, 0.18, size=2) * short
        return cls(
            center=(0.0, 0.0),
            amplitude=(float(x), float(y)),
            phase=_phases(generator),
            period=float(generator.uniform(*PERIOD_FRAMES)) * 1.5,
            swing=float(generator.uniform(-0.05, 0.05)),
            zoom=float(generator.uniform(-0.06, 0.06)),
        )

    def at(self, t: int) -> tuple[float, float, float, float]:
        """Returns x and y in pixels, the angle in radians and the scale in frame `t`."""
        angle = 2.0 * np.pi * t / self.period
        x = self.center[0] + self.amplitude[0] * np.cos(angle + self.phase[0])
        y = self.center[1] + self.amplitude[1] * np.sin(angle + self.phase[1])
        turn = self.swing * np.sin(angle + self.phase[1])
        return float(x), float(y), float(turn), float(1.0 + self.zoom * np.cos(angle))


def _phases(generator: np.random.Generator) -> tuple[float, float]:
    """Returns two phases less than 1 radian apart, so that the ellipse keeps some width."""
    first = float(generator.uniform(0.0, 2.0 * np.pi))
    return first, first + float(generator.uniform(-1.0, 1.0))


@dataclass(frozen=True)
class _MovingObject:
    """A star-shaped outline given by Fourier coefficients, with a texture that moves along."""

    path: _Path
    radius: float
    aspect: float
    cosines: NDArray[np.float64]
    sines: NDArray[np.float64]
    texture: Image.Image

    @classmethod
    def draw(cls, generator: np.random.Generator, height: int, width: int) -> _MovingObject:
        """Returns a random object that stays mostly inside a frame of this size."""
        short = min(height, width)
        radius = float(generator.uniform(0.14, 0.26)) * short
        room = np.maximum(np.array([width, height]) / 2.0 - radius, 1.0)
        amplitude = np.minimum(generator.uniform(0.12, 0.28, size=2) * short, room)
        center = np.array([width, height]) / 2.0
        center += generator.uniform(-1.0, 1.0, size=2) * (room - amplitude)
        decay = 0.16 / np.arange(1, NUM_HARMONICS + 1)
        side = 2 * int(np.ceil(radius * 1.8))
        return cls(
            path=_Path(
                center=(float(center[0]), float(center[1])),
                amplitude=(float(amplitude[0]), float(amplitude[1])),
                phase=_phases(generator),
                period=float(generator.uniform(*PERIOD_FRAMES)) * float(generator.choice([-1, 1])),
                swing=float(generator.uniform(-0.5, 0.5)),
                zoom=float(generator.uniform(-0.12, 0.12)),
            ),
            radius=radius,
            aspect=float(np.exp(generator.uniform(-0.45, 0.45))),
            cosines=generator.normal(0.0, 1.0, NUM_HARMONICS) * decay,
            sines=generator.normal(0.0, 1.0, NUM_HARMONICS) * decay,
            texture=_to_image(_object_texture(generator, side)),
        )

    def render(
        self, t: int, height: int, width: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns coverage of shape (H, W) in [0, 1] and color of shape (H, W, 3) in 0..255."""
        x, y, turn, scale = self.path.at(t)
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        dx, dy = (columns - x) / scale, (rows - y) / scale
        u = (np.cos(turn) * dx + np.sin(turn) * dy) / self.aspect**0.5
        v = (np.cos(turn) * dy - np.sin(turn) * dx) * self.aspect**0.5
        angle = np.arctan2(v, u)
        outline = np.ones_like(angle)
        for order in range(1, NUM_HARMONICS + 1):
            outline += self.cosines[order - 1] * np.cos(order * angle)
            outline += self.sines[order - 1] * np.sin(order * angle)
        outline = self.radius * np.clip(outline, 0.45, 1.7)
        distance = np.hypot(u, v)
        alpha = np.clip((outline - distance) * scale + 0.5, 0.0, 1.0).astype(np.float32)

        half = self.texture.width / 2.0
        cos, sin, root = np.cos(turn) / scale, np.sin(turn) / scale, self.aspect**0.5
        matrix = (
            cos / root,
            sin / root,
            half - (cos * x + sin * y) / root,
            -sin * root,
            cos * root,
            half - (cos * y - sin * x) * root,
        )
        color = _transform(self.texture, matrix, (height, width))
        # Light from the upper left gives the object a rounded look that turns with the view.
        shade = 1.05 - 0.28 * (distance / outline) ** 2 - 0.10 * (dx + dy) / (2.0 * self.radius)
        return alpha, color * shade[..., None].astype(np.float32)


def _sample(image: Image.Image, path: _Path, t: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Returns the view of the camera at `path` in frame `t`, of shape (H, W, 3)."""
    height, width = size
    x, y, turn, scale = path.at(t)
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    middle_x, middle_y = image.width / 2.0 + x, image.height / 2.0 + y
    matrix = (
        cos,
        sin,
        middle_x - cos * width / 2.0 - sin * height / 2.0,
        -sin,
        cos,
        middle_y + sin * width / 2.0 - cos * height / 2.0,
    )
    return _transform(image, matrix, size)


def _transform(
    image: Image.Image, matrix: tuple[float, ...], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Samples `image` bilinearly where the 2x3 `matrix` sends each output pixel."""
    height, width = size
    warped = image.transform(
        (width, height), Image.Transform.AFFINE, data=matrix, resample=Image.Resampling.BILINEAR
    )
    return np.asarray(warped, dtype=np.float32).copy()


def _to_image(pixels: NDArray[np.float32]) -> Image.Image:
    """Returns an RGB image of `pixels` (H, W, 3) in 0..255."""
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _noise(
    generator: np.random.Generator, height: int, width: int, coarsest: float, octaves: int
) -> NDArray[np.float32]:
    """Returns smooth noise of shape (H, W) with zero mean and unit deviation."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        cell = max(coarsest / 2**octave, 1.0)
        grid = generator.normal(
            size=(int(np.ceil(height / cell)) + 2, int(np.ceil(width / cell)) + 2)
        )
        layer = Image.fromarray(grid.astype(np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        total += np.asarray(layer, dtype=np.float32) * 0.6**octave
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def _palette(generator: np.random.Generator, num_colors: int) -> NDArray[np.float32]:
    """Returns colors of shape (num_colors, 3) in 0..255 around one random hue."""
    base = generator.uniform(40.0, 215.0, size=3)
    # Half the saturation of a random color: closer to footage.
    base = base.mean() + 0.5 * (base - base.mean())
    spread = generator.uniform(-40.0, 40.0, size=(num_colors, 3))
    light = generator.uniform(-40.0, 40.0, size=(num_colors, 1))
    return np.clip(base + spread + light, 8.0, 247.0).astype(np.float32)


def _mix(weight: NDArray[np.float32], colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blends two `colors` (2, 3) by `weight` (H, W), squashed to [0, 1]."""
    share = (1.0 / (1.0 + np.exp(-1.7 * weight)))[..., None].astype(np.float32)
    return colors[0] * share + colors[1] * (1.0 - share)


def _object_texture(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Returns a square texture of shape (side, side, 3): patches, stripes or both, and grain."""
    colors = _palette(generator, 3)
    patches = _noise(generator, side, side, side / 4.0, 3)
    pixels = _mix(patches * 1.5, colors[:2])
    if generator.random() < 0.6:
        rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
        angle = generator.uniform(0.0, np.pi)
        count = generator.uniform(3.0, 8.0)
        phase = 2.0 * np.pi * count * (np.cos(angle) * columns + np.sin(angle) * rows) / side
        stripes = np.sin(phase + 0.8 * patches).astype(np.float32)
        share = np.clip(stripes * 3.0, 0.0, 1.0)[..., None] * 0.8
        pixels = pixels * (1.0 - share) + colors[2] * share
    grain = _noise(generator, side, side, 4.0, 2)
    return pixels + 9.0 * grain[..., None]


def _background(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    """Returns a textured scene larger than the frame, with still shapes on it."""
    tall = int(np.ceil(height * (1 + 2 * MARGIN)))
    wide = int(np.ceil(width * (1 + 2 * MARGIN)))
    colors = _palette(generator, 4)
    broad = _noise(generator, tall, wide, max(tall, wide) / 3.0, 5)
    fine = _noise(generator, tall, wide, 8.0, 3)
    horizon = np.linspace(-1.5, 1.5, tall, dtype=np.float32)[:, None] * generator.uniform(0.0, 1.5)
    pixels = _mix(broad + horizon, colors[:2]) + fine[..., None] * generator.uniform(6.0, 16.0)
    image = _to_image(pixels)
    shapes = image.copy()
    brush = ImageDraw.Draw(shapes)
    for _ in range(int(generator.integers(2, 8))):
        half = generator.uniform(0.03, 0.15, size=2) * min(height, width)
        x, y = generator.uniform(0.0, 1.0, size=2) * (wide, tall)
        box = (x - half[0], y - half[1], x + half[0], y + half[1])
        color = tuple(int(c) for c in colors[int(generator.integers(0, 4))])
        draw = brush.ellipse if generator.random() < 0.5 else brush.rectangle
        draw(box, fill=color)
    blended = Image.blend(image, shapes, 0.75)
    return _to_image(np.asarray(blended, dtype=np.float32) + 5.0 * fine[..., None])
