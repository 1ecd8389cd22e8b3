"""Pictures: grids of images, what a code looks like from outside, and plots."""

from genlab.viz.grids import grid, save_grid, signed, to_uint8

__all__ = ["grid", "save_grid", "signed", "to_uint8"]
