"""Getting uv onto a host that has Python and nothing else: no pip, no ensurepip, no git.

uv is one static binary inside a wheel, so it is enough to find the wheel in the configured package index,
check its SHA-256 and unpack the binary. Standard library only, like everything the bootstrap runs.
"""

import base64
import hashlib
import json
import platform
import re
import ssl
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision.pip_config import PipConfig, local_path

TIMEOUT_S = 30
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, slots=True)
class Wheel:
    """One file of an index page. `sha256` is "" where the page has none."""

    url: str
    name: str
    sha256: str = ""

    @property
    def version(self) -> tuple[int, ...]:
        """The release as numbers; () for a pre-release, which is never wanted."""
        version = self.name.split("-")[1] if self.name.count("-") >= 4 else ""
        return tuple(int(part) for part in version.split(".")) if re.fullmatch(r"[\d.]+", version) else ()

    def fits(self, machine: str, libc: str) -> bool:
        """Whether this is uv for Linux on `machine` (x86_64, aarch64) with `libc` (glibc, musl)."""
        tag = "manylinux" if libc == "glibc" else "musllinux"
        return (
            self.name.startswith("uv-")
            and self.name.endswith(f"_{machine}.whl")
            and tag in self.name
            and self.version != ()
        )


class _Links(HTMLParser):
    """The links of a PEP 503 page, without the yanked ones."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "a" and (href := attributes.get("href")) and "data-yanked" not in attributes:
            self.hrefs.append(href)


def wheels_of_page(page: bytes, content_type: str, base_url: str) -> list[Wheel]:
    """The wheels that a simple index page offers, PEP 691 (JSON) or PEP 503 (HTML)."""
    if content_type.startswith(_JSON):
        return [
            Wheel(urljoin(base_url, file["url"]), file["filename"], file["hashes"].get("sha256", ""))
            for file in json.loads(page)["files"]
            if file["filename"].endswith(".whl") and not file.get("yanked")
        ]
    links = _Links()
    links.feed(page.decode(errors="replace"))
    found = []
    for href in links.hrefs:
        url, fragment = urldefrag(urljoin(base_url, href))
        name = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        if name.endswith(".whl"):
            found.append(Wheel(url, name, fragment.removeprefix("sha256=") if "sha256=" in fragment else ""))
    return found


def fetch_uv(pip: PipConfig, into: Path) -> Path:
    """Put the newest uv for this machine in the directory `into` and return its path.

    Raises:
        ProvisionError: no index could be reached, none has a uv for this machine, or its hash is wrong.
    """
    machine, libc = platform.machine(), platform.libc_ver()[0] or "musl"
    candidates, failures = [], []
    for place in pip.find_links:
        if (directory := local_path(place)) is not None and directory.is_dir():
            candidates += [Wheel(file.as_uri(), file.name) for file in directory.resolve().glob("uv-*.whl")]
    for index in pip.index_urls:
        url = index.rstrip("/") + "/uv/"
        try:
            page, content_type, url = _get(url, pip, _ACCEPT)
            candidates += wheels_of_page(page, content_type, url)
        except FileNotFoundError:
            continue  # this index does not have uv
        except (OSError, ValueError, KeyError) as problem:
            failures.append(f"{_without_password(index)}: {getattr(problem, 'reason', problem)}")
    fitting = [wheel for wheel in candidates if wheel.fits(machine, libc)]
    if not fitting:
        why = "; ".join(failures) or f"no configured index has a uv for {machine} with {libc}"
        raise ProvisionError(
            f"cannot get uv, the package installer ({why}): check the network, or name a reachable package "
            "index in pip's configuration (index-url) or put uv on PATH",
            temporary=bool(failures),
        )
    return _unpack(max(fitting, key=lambda wheel: wheel.version), into, pip)


def _unpack(wheel: Wheel, into: Path, pip: PipConfig) -> Path:
    is_local = wheel.url.startswith("file:")
    if not wheel.sha256 and not is_local:
        raise ProvisionError(
            f"cannot use {wheel.name}: its index gives no SHA-256 to check it against; put uv on PATH instead"
        )
    into.mkdir(parents=True, exist_ok=True)
    archive = into / wheel.name
    try:
        data, _, _ = _get(wheel.url, pip, "*/*")
    except OSError as problem:
        raise ProvisionError(
            f"cannot download {_without_password(wheel.url)} ({getattr(problem, 'reason', problem)}): "
            "check the network and try again",
            temporary=True,
        ) from problem
    if wheel.sha256 and hashlib.sha256(data).hexdigest() != wheel.sha256:
        raise ProvisionError(
            f"cannot use {wheel.name}: its SHA-256 is not the one its index names, so it is broken or "
            "tampered with; try again, or put uv on PATH",
            temporary=True,
        )
    archive.write_bytes(data)
    with zipfile.ZipFile(archive) as contents:
        member = next(name for name in contents.namelist() if name.endswith(".data/scripts/uv"))
        binary = into / "uv"
        binary.write_bytes(contents.read(member))
    binary.chmod(0o755)
    archive.unlink()
    return binary


def _get(url: str, pip: PipConfig, accept: str) -> tuple[bytes, str, str]:
    """(body, content type, final URL). FileNotFoundError for a page that does not exist."""
    if (path := local_path(url)) is not None:
        path = path / "index.html" if path.is_dir() else path
        return path.read_bytes(), "text/html", path.as_uri()
    parts = urlsplit(url)
    headers = {"Accept": accept, "User-Agent": "llm-supervisor"}
    if parts.username is not None:  # urllib does not send the credentials of a URL by itself
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    request = urllib.request.Request(_without_password(url), headers=headers)  # noqa: S310 - http(s), see above
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_tls(pip, url)) as answer:  # noqa: S310
            return answer.read(), answer.headers.get("Content-Type", "text/html"), answer.url
    except urllib.error.HTTPError as problem:
        with problem:
            if problem.code == 404:
                raise FileNotFoundError(url) from problem
            raise OSError(f"HTTP {problem.code} {problem.reason}") from problem


def _tls(pip: PipConfig, url: str) -> ssl.SSLContext:
    parts = urlsplit(url)
    if {parts.hostname, f"{parts.hostname}:{parts.port}"} & set(pip.trusted_hosts):
        return ssl._create_unverified_context()  # noqa: S323 - the user vouches with pip's trusted-host
    context = ssl.create_default_context()
    if pip.cert and Path(pip.cert).exists():
        is_file = Path(pip.cert).is_file()
        context.load_verify_locations(**{"cafile" if is_file else "capath": pip.cert})
    return context


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
