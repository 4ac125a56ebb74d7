"""Jobs done end to end: data, model, loss, metric, decoding."""
