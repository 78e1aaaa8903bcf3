"""Contact sheets: pictures of several prompts side by side, none left out."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

ENLARGED = 2
"""A pixel becomes this many squared, with hard edges: nothing is made smoother than it is."""
GAP, MARGIN = 2, 12
FONT_SIZE = 18
LINE = 24
CHARACTERS = 58  # of a line under four pictures of 128 pixels
PAPER, INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(blocks: Sequence[tuple[str, Sequence[Image.Image]]], columns: int = 2) -> Image.Image:
    """One block per prompt, `columns` of them in a row: its pictures in a square grid, in order, the prompt under.

    All pictures are of one size; each block has as many as the first.
    """
    side = math.ceil(math.sqrt(len(blocks[0][1])))
    width, height = (n * ENLARGED for n in blocks[0][1][0].size)
    block_width, grid_height = side * (width + GAP) - GAP, side * (height + GAP) - GAP
    characters = max(16, CHARACTERS * block_width // 518)
    captions = [textwrap.wrap(words, characters) for words, _ in blocks]
    block_height = grid_height + LINE * max(len(lines) for lines in captions) + 6
    rows = math.ceil(len(blocks) / columns)
    size = (
        columns * (block_width + MARGIN) + MARGIN,
        rows * (block_height + MARGIN) + MARGIN,
    )
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for i, (_, images) in enumerate(blocks):
        row, column = divmod(i, columns)
        left, top = MARGIN + column * (block_width + MARGIN), MARGIN + row * (block_height + MARGIN)
        for k, image in enumerate(images):
            y, x = divmod(k, side)
            large = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(large, (left + x * (width + GAP), top + y * (height + GAP)))
        for n, line in enumerate(captions[i]):
            draw.text((left, top + grid_height + 4 + n * LINE), line, fill=INK, font=font)
    return sheet
