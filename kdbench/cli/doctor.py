"""``kdbench doctor``"""

from __future__ import annotations

from typing import Any

import click

from kdbench.cli.options import json_option, open_store, print_json, store_option


@click.command("doctor")
@store_option
@json_option
def command(*, store: str | None, as_json: bool) -> None:
    """This installation: versions, hardware, op implementations and why one is missing, plugins, folders."""
    found = _examine(store)
    if as_json:
        print_json(found)
        return
    for title, fields in found.items():
        click.secho(title, bold=True)
        for name, value in fields.items():
            click.echo(f"  {name}: {value}")


def _examine(store: str | None) -> dict[str, dict[str, Any]]:
    import os
    import shutil

    import msgspec
    import torch

    from kdbench.data import default_cache
    from kdbench.environment import environment
    from kdbench.ops import build_info, implementation
    from kdbench.plugins import registry

    opened = open_store(store)
    folder = opened.root
    while not folder.exists():
        folder = folder.parent
    cuda = torch.cuda.is_available()
    here = msgspec.to_builtins(environment(device="cpu", threads=1, code=""))
    return {
        "environment": {
            **{name: value for name, value in here.items() if name not in ("code", "threads", "device")},
            "torch_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if cuda else f"none (torch built for CUDA: {torch.version.cuda})",
        },
        "ops": {"in use": implementation("cuda" if cuda else "cpu"), **build_info()},
        "plugins": {
            info.name: info.problem or ("ok" if info.state == "loaded" else info.state) for info in registry().plugins
        },
        "folders": {
            "store": str(opened.root),
            "free": f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB",
            "writable": os.access(folder, os.W_OK),
            "runs": len(opened.run_ids()),
            "data": str(default_cache()),
        },
    }
