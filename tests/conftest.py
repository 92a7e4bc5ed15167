"""What holds for every test."""

import signal

import hypothesis
import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background, as by nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)

BLANK = '<svg class="plot" viewBox="0 0 1 1" role="img"></svg>'

# A machine may be slow.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Whatever ran before, and in whichever process."""
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _pictures(request):
    """Pages are made whole where a test looks at them: in tests/report, in commands of their own,
    and in modules that say PICTURES = True. Elsewhere a blank stands for each picture, which takes
    half the time of a small run."""
    if "tests.report" in request.module.__name__ or getattr(request.module, "PICTURES", False):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distinf.report.svg.export", lambda figure, name, title: BLANK)
        yield
