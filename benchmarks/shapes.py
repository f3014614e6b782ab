"""Random-weight models of given shapes: the same ones as `engine bench --shape` has."""

from engine.cli.random_models import CACHE, SHAPES, Shape, folder

__all__ = ["CACHE", "SHAPES", "Shape", "folder"]
