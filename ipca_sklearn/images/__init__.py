"""One picture, whatever it is, to RGB: formats, decoding, orientation, resizing, and masks."""

__all__: list[str] = []
