"""Networks: their names, layers, shapes, weights and licences."""

__all__: list[str] = []
