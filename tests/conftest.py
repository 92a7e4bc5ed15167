"""What holds for every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Whatever ran before, and in whichever process."""
    torch.manual_seed(0)
