"""A bucket that refuses, is not there or cannot be reached is one line, not a service's page."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from distinf.cli import main
from distinf.errors import InputError
from distinf.store import open_root

PAGE = "<?xml version='1.0'?><Error><Code>{}</Code><Message>no</Message></Error>"
VERBS = {
    "get": lambda bucket: bucket.get("key"),
    "put": lambda bucket: bucket.put("key", b"x"),
    "put_if_absent": lambda bucket: bucket.put_if_absent("key", b"x"),
    "names": lambda bucket: bucket.names(""),
    "size": lambda bucket: bucket.size("key"),
    "delete": lambda bucket: bucket.delete("key"),
}


class Answers(BaseHTTPRequestHandler):
    """The same to whatever is asked."""

    def answer(self):
        code, name = self.server.answer
        body = PAGE.format(name).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def service(monkeypatch):
    """A service at AWS_ENDPOINT that gives the answer it is told to."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        where = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "AWS_ENDPOINT": where, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("verb", VERBS)
def test_keys_that_are_refused_are_one_line_that_names_them(service, verb):
    service.answer = 403, "AccessDenied"
    with pytest.raises(InputError) as refused:
        VERBS[verb](open_root("s3://bucket/run"))
    told = str(refused.value)
    assert "\n" not in told
    assert len(told) < 600
    assert "out: s3://bucket/run: " in told
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the driver" in told


def test_a_bucket_that_is_not_there_is_one_line(service):
    service.answer = 404, "NoSuchBucket"
    with pytest.raises(InputError, match="there is no such bucket, make it first") as refused:
        open_root("s3://bucket/run").put("key", b"x")
    assert "\n" not in str(refused.value)


def test_what_is_absent_is_absent(service):
    service.answer = 404, "NoSuchKey"
    bucket = open_root("s3://bucket/run")
    for verb in ("get", "size"):
        with pytest.raises(KeyError):
            VERBS[verb](bucket)
    bucket.delete("key")


def test_a_service_that_cannot_be_reached_may_be_at_the_next_try(monkeypatch, service, capsys):
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError) as lost:
        open_root("s3://bucket/run").put("key", b"x")
    assert "\n" not in str(lost.value)
    assert "s3://bucket/run: Generic S3 error" in str(lost.value)
    assert main(["status", "s3://bucket/run"]) == 4
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: s3://bucket/run: Generic S3 error")
    assert line.endswith("is there a way to it from here?; run the same command to resume")


def test_without_keys_a_command_ends_with_a_line(monkeypatch, service, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    service.answer = 404, "NoRole"  # of the machine's own service
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{service.server_port}")
    assert main(["status", "s3://bucket/run"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith("error: out: s3://bucket/run: ")
    assert "it wants other credentials: set AWS_ACCESS_KEY_ID" in told[0]
