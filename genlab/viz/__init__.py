"""Pictures: grids of images, plots, and pictures of what a trained model has learnt."""

from genlab.viz.grids import grid, save_grid, signed, to_uint8

__all__ = ["grid", "save_grid", "signed", "to_uint8"]
