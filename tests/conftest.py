"""What holds for every test."""

import hypothesis
import pytest
import torch

# A machine may be slow.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Whatever ran before, and in whichever process."""
    torch.manual_seed(0)
