"""Contact sheets: pictures of several prompts side by side, none left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from safelight.tasks.lettering import INK, PAPER, enlarged, font, mosaic, wrapped

ENLARGED = 2
MARGIN = 12
FONT_SIZE = 18
LINE = 24
MOST_LINES = 9  # of a prompt under its pictures


def contact_sheet(blocks: Sequence[tuple[str, Sequence[Image.Image]]], columns: int = 2) -> Image.Image:
    """One block per prompt, `columns` of them in a row: its pictures in a square grid, in order, the prompt under.

    All pictures are of one size; each block has as many as the first.
    """
    letters = font(FONT_SIZE)
    grids = [mosaic([enlarged(image, ENLARGED) for image in images]) for _, images in blocks]
    block_width, grid_height = grids[0].size
    captions = [wrapped(words, letters, block_width, MOST_LINES) for words, _ in blocks]
    block_height = grid_height + LINE * max(len(lines) for lines in captions) + 6
    rows = math.ceil(len(blocks) / columns)
    size = (columns * (block_width + MARGIN) + MARGIN, rows * (block_height + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, grid in enumerate(grids):
        row, column = divmod(i, columns)
        left, top = MARGIN + column * (block_width + MARGIN), MARGIN + row * (block_height + MARGIN)
        sheet.paste(grid, (left, top))
        for n, line in enumerate(captions[i]):
            draw.text((left, top + grid_height + 4 + n * LINE), line, fill=INK, font=letters)
    return sheet
