"""Networks: their names, layers, shapes, weights and licences."""
