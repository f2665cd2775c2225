"""Downloads that are checked, retried and resumed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kdbench.data.base import Progress
from kdbench.errors import KdbenchError

__all__ = ["NotFetched", "download", "offline"]

RETRIES = 3
CHUNK = 1 << 20


_allowed = True


@contextmanager
def offline() -> Iterator[None]:
    """Inside the block, what would have to be downloaded raises :class:`NotFetched` in place of going out."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


class NotFetched(KdbenchError):
    """Data is not here, and nothing may be downloaded."""


def download(url: str, target: Path, md5: str, title: str, progress: Progress | None) -> None:
    """Fetch ``url`` into ``target``, check it, try again on a fault; what arrived before a fault is not fetched twice.

    Raises
    ------
    KdbenchError : there is no connection, or what arrives has another checksum.
    """
    if not _allowed:
        raise NotFetched(f"{title} is not here, and nothing is downloaded now", where=target)
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)  # progress is reported once, by the caller's callback
    base, _, name = url.rpartition("/")
    fetcher = pooch.create(
        path=target.parent, base_url=f"{base}/", registry={name: f"md5:{md5}"}, retry_if_failed=RETRIES
    )
    local = "let --data-dir name a folder that holds a copy of the archive"
    try:
        fetcher.fetch(name, downloader=_Resume(target.with_name(f"{name}.part"), title, progress))
    except ValueError as error:
        raise KdbenchError(
            f"the download of {title} has the wrong checksum (expected md5 {md5})", where=url, cure=local
        ) from error
    except requests.exceptions.RequestException as error:
        reason = type(error).__name__ if error.response is None else f"HTTP {error.response.status_code}"
        raise KdbenchError(f"cannot download {title} ({reason}): no network?", where=url, cure=local) from error


class _Resume:
    """A downloader for pooch that keeps what has arrived in ``partial`` and asks the server for the rest only."""

    def __init__(self, partial: Path, title: str, progress: Progress | None) -> None:
        self.partial, self.title, self.progress = partial, title, progress

    def __call__(self, url: str, output_file: str | IO[bytes], pooch: Any, check_only: bool = False) -> None:
        import requests
        from urllib3.exceptions import HTTPError

        done = self.partial.stat().st_size if self.partial.is_file() else 0
        # identity: the archive is compressed already, and byte ranges must count its own bytes.
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
        with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                self.partial.unlink()  # it is whole or overlong; pooch tries again from the start
            response.raise_for_status()
            done = done if response.status_code == requests.codes.partial_content else 0
            total = done + int(response.headers.get("Content-Length", 0))
            try:
                with self.partial.open("ab" if done else "wb") as file:
                    for block in response.raw.stream(CHUNK, decode_content=False):
                        done += file.write(block)
                        if self.progress:
                            self.progress(f"downloading {self.title}", done, total)
            except HTTPError as error:  # pooch retries the faults of requests, not those of urllib3 below it
                raise requests.exceptions.ConnectionError(error) from error
        self.partial.replace(str(output_file))
