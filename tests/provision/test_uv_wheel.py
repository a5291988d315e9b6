"""Getting uv from a package index with the standard library."""

import hashlib
import io
import json
import platform
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision.pip_config import PipConfig
from supervisord_llm.provision.uv_wheel import Wheel, fetch_uv, wheels_of_page

TAG = "manylinux_2_17" if platform.libc_ver()[0] == "glibc" else "musllinux_1_1"
NAME = f"uv-0.13.8-py3-none-{TAG}_{platform.machine()}.whl"
OLDER = NAME.replace("0.13.8", "0.9.30")


def wheel_bytes(said: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("uv-0.13.8.data/scripts/uv", f"#!/bin/sh\necho {said}\n")
        archive.writestr("uv-0.13.8.data/scripts/uvx", "other")
    return buffer.getvalue()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL of a package index over HTTP, the directory behind it)."""
    directory = tmp_path / "index"
    (directory / "uv").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", directory
    server.shutdown()
    server.server_close()
    thread.join()


def publish(directory: Path, *, sha256: str | None = None) -> None:
    """Two versions of uv on a PEP 503 page, with right hashes unless `sha256` says otherwise."""
    links = ""
    for name in (NAME, OLDER):
        data = wheel_bytes(name)
        (directory / "uv" / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest() if sha256 is None else sha256
        links += (
            f'<a href="{name}#sha256={digest}">{name}</a>\n' if digest else f'<a href="{name}">{name}</a>'
        )
    (directory / "uv" / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


def test_the_newest_fitting_uv_is_unpacked(index: tuple[str, Path], tmp_path: Path) -> None:
    url, directory = index
    publish(directory)
    binary = fetch_uv(PipConfig(index_url=url), tmp_path / "into")
    assert NAME in binary.read_text()
    assert binary.stat().st_mode & 0o111
    assert list(binary.parent.iterdir()) == [binary]


def test_an_index_without_uv_and_a_file_index_are_looked_at(index: tuple[str, Path], tmp_path: Path) -> None:
    """The main index answers 404; the extra one is a directory; one more does not exist."""
    url, directory = index
    publish(directory)
    pip = PipConfig(
        index_url=f"{url}/nothing", extra_index_urls=(directory.as_uri(), (tmp_path / "gone").as_uri())
    )
    assert NAME in fetch_uv(pip, tmp_path / "into").read_text()


def test_a_directory_of_wheels_is_enough(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(wheel_bytes("found"))
    assert (
        "found" in fetch_uv(PipConfig(find_links=(str(tmp_path),), no_index=True), tmp_path / "i").read_text()
    )


@pytest.mark.parametrize(
    ("sha256", "said"), [("0" * 64, "broken or tampered with"), ("", "gives no SHA-256 to check it against")]
)
def test_a_wheel_that_cannot_be_checked_is_not_used(
    index: tuple[str, Path], tmp_path: Path, sha256: str, said: str
) -> None:
    url, directory = index
    publish(directory, sha256=sha256)
    with pytest.raises(ProvisionError, match=said):
        fetch_uv(PipConfig(index_url=url), tmp_path / "into")
    assert not (tmp_path / "into" / "uv").exists()


def test_an_unreachable_index_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match=r"cannot get uv.*http://127\.0\.0\.1:9") as problem:
        fetch_uv(PipConfig(index_url="http://me:hunter2@127.0.0.1:9"), tmp_path)
    assert "hunter2" not in str(problem.value)
    assert problem.value.temporary


def test_a_json_page_without_yanked_files() -> None:
    files = [
        {"filename": NAME, "url": "../" + NAME, "hashes": {"sha256": "aa"}},
        {"filename": OLDER, "url": "x", "hashes": {}, "yanked": "a mistake"},
        {"filename": "uv-1.tar.gz", "url": "y", "hashes": {}},
    ]
    page = json.dumps({"files": files}).encode()
    found = wheels_of_page(page, "application/vnd.pypi.simple.v1+json; charset=utf-8", "https://i/simple/uv/")
    assert found == [Wheel(f"https://i/simple/{NAME}", NAME, "aa")]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("uv-0.13.8-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("uv-0.13.8-py3-none-musllinux_1_1_x86_64.whl", False),
        ("uv-0.13.8-py3-none-manylinux_2_28_aarch64.whl", False),
        ("uv-0.13.8-py3-none-win_amd64.whl", False),
        ("uv-0.14.0rc1-py3-none-manylinux_2_17_x86_64.whl", False),
        ("uv_build-0.13.8-py3-none-manylinux_2_17_x86_64.whl", False),
    ],
)
def test_which_wheels_fit_this_machine(name: str, fits: bool) -> None:
    assert Wheel("u", name).fits("x86_64", "glibc") is fits
