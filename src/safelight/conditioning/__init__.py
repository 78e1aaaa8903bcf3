"""What the user says (words, and later labels, boxes, maps, pictures) -> `Conditioning`, the three doors."""
