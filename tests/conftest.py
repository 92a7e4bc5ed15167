"""What holds for every test."""

import signal

import hypothesis
import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background, as by nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine may be slow.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Whatever ran before, and in whichever process."""
    torch.manual_seed(0)
