"""Whether the hub can be asked at all: its client would retry for half a minute first."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


def hub_reachable() -> bool:
    """False when the hub's host name does not resolve and no proxy could resolve it for us.

    Nothing is sent to the hub. True promises nothing: the connection may still fail.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True
