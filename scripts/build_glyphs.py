"""Render the glyphs of the scenes world from Noto Color Emoji into the atlas that the package ships.

Run once, after changing the list in `safelight/training/scenes/glyphs.py`, and likewise for the faces that the shipped
model is taught in `benchmarks/fine_tuning.py`:

    python scripts/build_glyphs.py /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
    python scripts/build_glyphs.py FONT --characters 🙀😺😾😼 --output benchmarks/jojo/faces.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from safelight.training.scenes.glyphs import ATLAS_PATH, CELL, CHARACTERS, COLUMNS

FONT_SIZE = 109  # the one size at which the bitmaps of a CBDT font are stored
MARGIN = 20  # pixels around the drawn character, so that nothing is cut before the crop


def draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One character, cropped to what is visible, its longer side scaled to the cell, centred: RGBA."""
    canvas = Image.new("RGBA", (FONT_SIZE * 2, FONT_SIZE * 2))
    ImageDraw.Draw(canvas).text((MARGIN, MARGIN), character, font=font, embedded_color=True)
    box = canvas.getchannel("A").point(lambda alpha: 255 if alpha >= 16 else 0).getbbox()
    if box is None:
        raise SystemExit(f"the font has no picture for {character!r}: choose another character or font")
    glyph = canvas.crop(box)
    scale = CELL / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    glyph = glyph.resize(size, Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(glyph, ((CELL - glyph.width) // 2, (CELL - glyph.height) // 2))
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("font", type=Path, help="the file NotoColorEmoji.ttf (the bitmap build)")
    parser.add_argument("--characters", default="".join(CHARACTERS), help="default: the world's")
    parser.add_argument("--output", type=Path, default=ATLAS_PATH, help="default: the package's atlas")
    chosen = parser.parse_args()
    font = ImageFont.truetype(chosen.font, FONT_SIZE)
    columns, rows = min(COLUMNS, len(chosen.characters)), -(-len(chosen.characters) // COLUMNS)
    atlas = Image.new("RGBA", (columns * CELL, rows * CELL))
    for i, character in enumerate(chosen.characters):
        atlas.paste(draw(character, font), (i % COLUMNS * CELL, i // COLUMNS * CELL))
    # Near lossless would smear thin lines; the method costs time here, and nothing at run time.
    atlas.save(chosen.output, lossless=True, quality=100, method=6)
    print(f"{chosen.output.name}: {len(chosen.characters)} glyphs, {chosen.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
