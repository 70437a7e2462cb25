"""A model layer by layer: fused against unfused against float64."""
