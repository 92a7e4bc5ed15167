"""Whom a cluster's address lets in and whether anything answers there, before Ray is asked."""

import ipaddress
import os
import secrets
import socket
import time

from distinf.errors import InputError

# "0": Ray takes 127.0.0.1 for this machine's address, on every system, and listens there alone.
LITERAL_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
ANSWER_S = 6.0  # a cluster that is just starting may need a moment


def close_to_others() -> None:
    """The environment for a cluster of our own, whatever it says for another one: authentication
    by a token that only this run knows, if none is given, and every server on 127.0.0.1."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ[LITERAL_LOOPBACK] = "0"
    for name in TOKENS:
        if not os.environ.get(name):  # an empty one is none
            os.environ.pop(name, None)
    if not os.environ.keys() & TOKENS:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def resolved(address: str) -> str:
    """What Ray makes of the address: "auto" is RAY_ADDRESS where that is set."""
    return (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address


def host_and_port(address: str) -> tuple[str, int] | None:
    """None for what names no host: "auto", and what Ray will refuse by itself."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None


def is_loopback(host: str) -> bool:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def refuse_open(address: str) -> None:
    """InputError if the cluster is beyond this machine and asks nobody for a token."""
    place = host_and_port(address)
    if place and not is_loopback(place[0]) and os.environ.get("RAY_AUTH_MODE") != "token":
        raise InputError(
            f"runtime.address: {address} is beyond this machine and RAY_AUTH_MODE is not 'token': "
            "anyone who reaches it runs code as you; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH, or runtime.insecure=true"
        )


def refuse_silent(address: str, own_host: str) -> None:
    """InputError if nothing answers there; Ray alone would go on trying for 14 minutes.

    own_host  what Ray takes for this machine when the address says 127.0.0.1 or localhost
    """
    place = host_and_port(address)
    if place is None:
        return
    host, port = place
    host = own_host if host in ("127.0.0.1", "localhost", "::1") else host
    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            socket.create_connection((host, port), timeout=ANSWER_S / 2).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                reason = getattr(error, "strerror", None) or str(error)
                raise InputError(
                    f"runtime.address: nothing answers at {host}:{port} ({reason}); "
                    "check the address and that the cluster is up"
                ) from None
        time.sleep(0.5)
