"""Jobs done end to end: data, model, loss, metric, decoding."""

from throughtime.tasks import language

__all__ = ["language"]
