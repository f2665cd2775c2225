"""Downloads against a server on this machine: checked, retried, resumed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdbench.data import DATASETS, _download, cifar
from kdbench.data._download import download
from kdbench.errors import KdbenchError

CONTENT = bytes(range(256)) * 5_000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``content``; breaks the connection ``breaks`` times half-way; logs the ranges asked for."""

    content = CONTENT
    breaks = 0
    ranges_supported = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data/cifar-10-binary.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges_supported else 0
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Encoding", "x-gzip")  # as some servers label archives: it must stay packed
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda _seconds: None)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_arrives_and_reports(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    target = tmp_path / "cifar-10-binary.tar.gz"
    download(server.url, target, MD5, "CIFAR-10", lambda *step: steps.append(step))
    assert target.read_bytes() == CONTENT
    assert steps[-1] == ("downloading CIFAR-10", len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("ranges_supported", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path, ranges_supported: bool) -> None:
    server.breaks, server.ranges_supported = 1, ranges_supported
    target = tmp_path / "cifar-10-binary.tar.gz"
    download(server.url, target, MD5, "CIFAR-10", None)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT) // 2}-"]


def test_what_an_earlier_run_left_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(CONTENT[:1000])
    target = tmp_path / "cifar-10-binary.tar.gz"
    download(server.url, target, MD5, "CIFAR-10", None)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


@pytest.mark.parametrize("leftover", [b"wrong" * 100, CONTENT, CONTENT + b"more"], ids=["wrong", "whole", "overlong"])
def test_a_leftover_of_no_use_is_started_over(server: Server, tmp_path: Path, leftover: bytes) -> None:
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(leftover)
    target = tmp_path / "cifar-10-binary.tar.gz"
    download(server.url, target, MD5, "CIFAR-10", None)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] is None


def test_another_content_is_refused(server: Server, tmp_path: Path) -> None:
    server.content = b"something else"
    with pytest.raises(KdbenchError, match=r"wrong checksum \(expected md5 .*--data-dir"):
        download(server.url, tmp_path / "cifar-10-binary.tar.gz", MD5, "CIFAR-10", None)
    assert len(server.asked) == 1 + _download.RETRIES
    assert not list(tmp_path.iterdir())


def test_a_server_that_refuses(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(KdbenchError, match=r"cannot download CIFAR-10 \(HTTP 503\).*--data-dir"):
        download(server.url, tmp_path / "cifar-10-binary.tar.gz", MD5, "CIFAR-10", None)


@pytest.mark.parametrize("locate", [cifar.locate_cifar10, cifar.locate_cifar100])
def test_no_network(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locate: object) -> None:
    nobody = server.url.replace("http://127.0.0.1", "http://nobody.invalid")
    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(cifar, name, getattr(cifar, name)._replace(url=nobody))
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(KdbenchError, match=r"cannot download CIFAR-.*no network\?.*let --data-dir name a folder"):
        locate(None, tmp_path, None)


def test_a_data_set_is_downloaded_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_data_cifar import CIFAR10, archive

    server.content = archive(CIFAR10, tmp_path / "in").read_bytes()
    layout = CIFAR10._replace(url=server.url, md5=hashlib.md5(server.content).hexdigest())
    monkeypatch.setattr(cifar, "CIFAR10", layout)
    assert not DATASETS["cifar10"].at_hand(tmp_path / "cache")
    first = cifar.locate_cifar10(None, tmp_path / "cache", None)
    assert DATASETS["cifar10"].at_hand(tmp_path / "cache")
    assert (first.official, first.note) == (True, "")
    assert cifar.locate_cifar10(None, tmp_path / "cache", None) == first
    assert len(server.asked) == 1
