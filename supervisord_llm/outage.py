"""Why an API elsewhere could not be asked, in words that an operator can act on. No word of what was sent."""

import errno
from urllib.parse import urlsplit

import aiohttp

OPEN_THE_UNIT = "as a service, install the drop-in remote.conf of docs/systemd.md"


def outage(error: Exception, silence_s: float | None = None) -> str:
    """A sentence about `error`, which aiohttp raised; `silence_s` is for how long nothing may come.

    Its subject is left out: "its certificate is not trusted (…)", "nothing listens there".
    """
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"its name does not resolve; check `url` and the DNS of this host, or {OPEN_THE_UNIT}"
        case aiohttp.ClientConnectorCertificateError(certificate_error=why):
            reason = getattr(why, "verify_message", "") or type(why).__name__
            way_out = "check `url`, or set SSL_CERT_FILE of the daemon to the CA that signed it"
            return f"its certificate is not trusted ({reason}); {way_out}"
        case aiohttp.ClientSSLError():
            return "it does not speak TLS as it should; check `url`: https:// or http://, and the port"
        case aiohttp.ClientConnectorError(os_error=why):
            return _unconnected(why)
        case aiohttp.ConnectionTimeoutError():
            return f"there is no connection in time; check `url` and the network, or {OPEN_THE_UNIT}"
        case aiohttp.ServerTimeoutError():
            return f"it has sent nothing for {silence_s or 0:g} s; try again, or raise `stall_timeout`"
        case TimeoutError():
            return f"it does not answer in time; check `url` and the network, or {OPEN_THE_UNIT}"
        case aiohttp.ClientResponseError() | aiohttp.http.HttpProcessingError():
            return "what it sends is not HTTP as it should be; check `url`"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError() | ConnectionError():
            return "the connection broke; try again"
        case _:
            return f"it cannot be asked ({type(error).__name__}); check `url` and the network"


def _unconnected(why: OSError) -> str:
    match why.errno:
        case errno.ECONNREFUSED:
            return "nothing listens there; check `url`, or start what is to listen"
        case errno.EPERM | errno.EACCES:
            return f"this host does not let the daemon out; open its firewall, or {OPEN_THE_UNIT}"
        case errno.EMFILE | errno.ENFILE:
            return "the daemon is out of open files; raise its limit"
        case _:
            return f"there is no way to it ({why.strerror or why}); check `url` and the network"


def complaint(status: int, location: str = "") -> str:
    """What an answer with `status` tells of the way there or the key; "" where it tells nothing bad."""
    if 300 <= status < 400:
        target = urlsplit(location)
        to = f" to {target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else ""
        return f"it redirects{to} ({status}), which is not followed; correct `url`"
    if status == 402:
        return "there is nothing left to pay it with (402); see the account there"
    if status in (401, 403):
        what = "does not accept the key" if status == 401 else "forbids it to the key"
        return f"it {what} ({status}); check the key in the configuration, and what it may do there"
    if status == 407:
        return "a proxy on the way wants to be logged in to (407); check the network"
    if status >= 500 and status != 501:  # that is: not for this request
        return f"it answers {status}, a fault of its own; try again"
    return ""
