"""Models side by side on the same pictures: a grid, a page with a slider, an animation."""
