"""Render the characters of the built-in data set `glyphs`."""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from lowshot.core.errors import InputError
from lowshot.core.seeds import stream

_SANS = ("DejaVuSans", "DejaVuSans-Bold")
_SERIF = ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic")
_MONO = ("DejaVuSansMono", "DejaVuSansMono-Bold")
_STIX = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic")

# Script -> (its characters, the fonts that contain all of them).
SCRIPTS = {
    "latin": ("ACJMRTVWXZd&", (*_SANS, *_SERIF, *_MONO, *_STIX)),
    "greek": ("ΓΔΞΣΨΩλμξπσω", (*_SANS, *_SERIF, *_MONO, *_STIX)),
    "cyrillic": ("БДИФЭЮЊЋѪжђѬ", (*_SANS, *_SERIF)),
    "armenian": ("ԳԹԻԽԾՃՄՉՊՋՎՖ", (*_SANS, *_SERIF, *_MONO)),
    "georgian": ("ბლორტუფქღყწჯ", (*_SANS, *_SERIF, *_MONO)),
    "hebrew": ("אבהלמעפצקשץף", _SANS),
    "arabic": ("خرطفكنويبتذش", (*_SANS, *_MONO)),
    "nko": ("ߍߎߏߐߒߔߘߚߝߞߢߥ", _SANS),
    "lao": ("ກຂຄຊຍຕທຟມລສຮ", (*_SANS, *_MONO)),
    "canadian": ("ᐅᐊᒪᓂᓄᓇᓓᓕᓚᓱᓴᔪ", _SANS),
    "tifinagh": ("ⴾⴿⵂⵆⵈⵋⵒⵓⵗⵘⵢⵣ", _SANS),
    "old_italic": ("𐌄𐌈𐌊𐌌𐌍𐌎𐌑𐌔𐌖𐌘𐌙𐌛", _SANS),
}
N_TRAIN, N_TEST, SIZE = 50, 20, 28
_MASTER, _INK = 64, 44  # side of an undistorted master, and the longer side of its ink, in pixels


def master(char: str, font: str) -> np.ndarray:
    """Render `char` without distortion: float32 (64, 64) in 0..1, centred, the longer side of its ink 44 px."""
    canvas = Image.new("L", (256, 256))
    ImageDraw.Draw(canvas).text((128, 128), char, fill=255, font=_font(font), anchor="mm")
    ink = canvas.crop(canvas.getbbox())
    scale = _INK / max(ink.size)
    ink = ink.resize([max(1, round(side * scale)) for side in ink.size], Image.Resampling.LANCZOS)
    square = Image.new("L", (_MASTER, _MASTER))
    square.paste(ink, ((_MASTER - ink.width) // 2, (_MASTER - ink.height) // 2))
    return np.asarray(square, np.float32) / 255


@lru_cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise InputError(f"{path}: matplotlib's font is missing. Install matplotlib from PyPI")
    # Every build of Pillow has the basic layout engine. Raqm, which only some have, shapes Arabic differently.
    return ImageFont.truetype(str(path), 96, layout_engine=ImageFont.Layout.BASIC)


def draw_class(class_id: int, script: str, char: str, n_images: int) -> np.ndarray:
    """Draw uint8 (n_images, 28, 28, 1) of one character. Each image has its own random stream."""
    fonts = SCRIPTS[script][1]
    streams = [stream(0, "glyphs", class_id, i) for i in range(n_images)]
    font = [rng.integers(len(fonts)) for rng in streams]
    knobs = torch.from_numpy(np.stack([rng.uniform(-1, 1, 9) for rng in streams])).float()
    bend = torch.from_numpy(np.stack([rng.standard_normal((2, 4, 4)) for rng in streams])).float()
    grain = torch.from_numpy(np.stack([rng.standard_normal((1, SIZE, SIZE)) for rng in streams])).float()
    masters = gaussian_filter(np.stack([master(char, name) for name in fonts]), sigma=(0, 1.8, 1.8))
    soft = torch.from_numpy(masters)[font, None]
    grid = F.affine_grid(_affine(knobs), [n_images, 1, 2 * SIZE, 2 * SIZE], align_corners=False)
    grid = grid + 0.09 * F.interpolate(bend, size=2 * SIZE, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    ink = _stroke(F.grid_sample(soft, grid, align_corners=False), level=0.36 + 0.16 * knobs[:, 6])
    contrast, noise = 0.7 + 0.3 * knobs[:, 7], 0.11 + 0.07 * knobs[:, 8]
    grey = F.avg_pool2d(ink, 2) * contrast.view(-1, 1, 1, 1) + grain * noise.view(-1, 1, 1, 1)
    return (grey.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _affine(knobs: torch.Tensor) -> torch.Tensor:
    """Return (N, 2, 3) maps from image to master: rotation up to 26 degrees, scale 0.72..1.25, shear up to 0.3, shift
    up to 3 px."""
    angle, shear = 0.45 * knobs[:, 0], 0.3 * knobs[:, 1]
    width, height = torch.exp(0.05 + 0.28 * knobs[:, 2]), torch.exp(0.05 + 0.28 * knobs[:, 3])
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift = 0.2 * knobs[:, 4:6]
    first = torch.stack([cos * width, (cos * shear - sin) * height, shift[:, 0]], dim=1)
    second = torch.stack([sin * width, (sin * shear + cos) * height, shift[:, 1]], dim=1)
    return torch.stack([first, second], dim=1)


def _stroke(soft: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Threshold blurred ink (N, 1, H, W) softly at `level` (N,). Low levels give thick strokes, high levels thin."""
    soft = soft / soft.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return torch.sigmoid(14 * (soft - level.view(-1, 1, 1, 1)))
