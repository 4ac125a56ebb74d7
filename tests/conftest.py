"""What holds for every test: memory that nobody wrote is NaN, every test has a seed, hypothesis leaves no files."""

import torch
from hypothesis import settings

settings.register_profile("throughtime", deadline=None, max_examples=50, print_blob=True, database=None)
settings.load_profile("throughtime")


def pytest_configure(config):
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with the line above: empty() is full of NaN


def pytest_runtest_setup(item):
    torch.manual_seed(0)
