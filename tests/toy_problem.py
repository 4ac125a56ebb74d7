"""A small problem with everything that makes resuming hard: a carried state, dropout, epochs, validation."""

import torch
from torch import nn

import throughtime as tt
from throughtime.learning import Loss, seed_all

UNITS, HIDDEN, WINDOW = 6, 5, 4


class Toy:
    """The next of a few symbols, in windows of a stream (rows B); each epoch begins without a state."""

    steps_per_epoch = 9

    def __init__(self, rows=5, dropout=0.2, dtype=torch.float32, seed=5):
        seed_all(seed)
        self.model = nn.ModuleDict(
            {
                "recurrent": tt.Recurrent(tt.cells.LSTM, UNITS, HIDDEN, num_layers=2, dropout=dropout),
                "output": nn.Linear(HIDDEN, UNITS),
            }
        ).to(dtype)
        drawn = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, UNITS, (rows, self.steps_per_epoch * WINDOW), generator=drawn).sort(dim=0).values
        self.ids = torch.cat([ids, ids[:, :1]], dim=1)
        self.states = []  # what the loop handed in

    def batch(self, step, rank, world):
        k = step % self.steps_per_epoch
        return self.ids[rank::world, k * WINDOW : (k + 1) * WINDOW + 1], k == 0

    def loss(self, batch, state):
        self.states.append(state)
        window, begins = batch
        x = nn.functional.one_hot(window[:, :-1], UNITS).to(self.model["output"].weight.dtype)
        y, state = self.model["recurrent"](x, None if begins else state)
        logits = self.model["output"](y)
        mean = nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        return Loss(mean, window[:, 1:].numel(), state)

    def validate(self):
        torch.rand(7)  # drawing here must change nothing
        return {"nats": float(self.loss(self.batch(0, 0, 1), None).mean)}
