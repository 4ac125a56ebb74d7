"""What models are made of."""

from throughtime.layers.recurrent import Recurrent

__all__ = ["Recurrent"]
