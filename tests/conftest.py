"""What holds for every test."""

import os
import shutil
import signal

import hypothesis
import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background, as by nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)

BLANK = '<svg class="plot" viewBox="0 0 1 1" role="img"></svg>'

# Runs of the tests lie in memory where there is room: what they sync is a third of their time on a
# quiet disk, and most of it on a busy one. A folder that is asked for (--basetemp) is taken.
# A container's may run no command, and some tests make commands.
MEMORY = "/dev/shm"
if (
    os.path.isdir(MEMORY)
    and shutil.disk_usage(MEMORY).free > 4 << 30
    and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)

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
        patch.setattr("distinf.report.svg.picture", lambda name, title, draw: BLANK)
        yield
