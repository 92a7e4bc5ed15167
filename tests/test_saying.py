"""What is said before the stages have progress of their own."""

import re
import time

from distinf import saying


def test_what_takes_long_is_said_again_until_something_else_is(monkeypatch, capsys):
    monkeypatch.setattr(saying, "AGAIN_S", 0.05)
    voice = saying.Voice()
    voice.say("first", again=False)
    voice.say("second")
    said = ""
    until = time.monotonic() + 30
    while said.count("second: after") < 2 and time.monotonic() < until:
        time.sleep(0.01)
        said += capsys.readouterr().err
    assert re.match(r"first\nsecond\n     second: after \d+ s\n", said)
    voice.say("third")
    voice.rest()
    voice.say("fourth")
    time.sleep(0.2)
    after = capsys.readouterr().err.splitlines()
    assert [line for line in after if "second" not in line][-1] == "fourth"
    assert "     fourth" not in "".join(after)
    assert "first: after" not in said
