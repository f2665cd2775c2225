"""Bad input: one clear line (what, where, cure), a non-zero exit, no traceback, and nothing finished is lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time

import pytest
from distributions import distribution, on_path, toys
from in_process import complaint, inside, installed

TOY = ("reproduce", "toyline", "--tier", "smoke", "--seeds", "2")
DISTIL = ("reproduce", "toy", "--tier", "smoke")
BROKEN = "import nobodys\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Toy papers, installed as plugins."""
    return toys(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def toy(site):
    """The command with the toy papers installed."""
    with installed(site):
        yield inside


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """A store with a finished run of each toy paper; tests take a copy."""
    store = tmp_path_factory.mktemp("finished")
    for request in (TOY, DISTIL):
        toy(*request, "--executor", "inline", "--store", str(store), check=0)
    return store


@pytest.fixture
def copy(finished, store):
    shutil.copytree(finished, store)
    return store


def stages(store):
    """Every stage with a record, by label."""
    records = (json.loads(path.read_bytes()) for path in store.glob("stages/*/record.json"))
    return {record["label"]: store / "stages" / record["hash"] for record in records}


def reused(toy, *request):
    """Labels of the stages that a new call takes as they are, and of those that it makes."""
    result = json.loads(toy(*request, "--executor", "inline", "--json", check=0).stdout)
    lines = result["stages"]
    return {s["label"] for s in lines if s["reused"]}, {s["label"] for s in lines if not s["reused"]}


def test_local_data_for_a_generated_data_set_is_a_mistake(store, tmp_path):
    """Whoever forgets --dataset must not believe that their own data was used."""
    done = inside("reproduce", "takd", "--tier", "smoke", "--data-dir", str(tmp_path), check=1)
    assert "MNIST-1D is generated and takes no --data-dir" in complaint(done)
    assert "--dataset cifar10 or cifar100" in complaint(done)
    assert not list(store.glob("stages/*"))


# ------------------------------------------------------------------------------------------------------ unknown names

UNKNOWN = {
    "paper": (("reproduce", "tkad"), "unknown paper 'tkad'", "did you mean 'takd'? known: "),
    "tier": (("reproduce", "takd", "--tier", "labtop"), "unknown tier 'labtop'", "did you mean 'laptop'?"),
    "data set": (("reproduce", "takd", "--dataset", "mnist1"), "unknown data set 'mnist1'", "did you mean 'mnist1d'?"),
    "protocol": (("plan", "takd", "--protocol", "cleen"), "unknown protocol 'cleen'", "did you mean 'clean'?"),
    "device": (("reproduce", "takd", "--device", "cpuu"), "unknown device 'cpuu'", "did you mean 'cpu'?"),
    "claim": (("reproduce", "takd", "--claims", "H1,H33"), "unknown claim 'H33'", "did you mean 'H3'?"),
    "executor": (("plan", "takd", "--executor", "locl"), "unknown executor 'locl'", "did you mean 'local'?"),
    "shown paper": (("show", "takdd"), "unknown paper 'takdd'", "did you mean 'takd'?"),
    "verified data set": (("data", "verify", "cifar1"), "unknown data set 'cifar1'", "did you mean 'cifar10'?"),
}


@pytest.mark.parametrize(("args", "what", "cure"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_name_is_answered_with_the_nearest(store, args, what, cure):
    line = complaint(inside(*args))
    assert line.startswith(what)
    assert cure in line
    assert not store.exists()


def test_an_unknown_run_is_answered_with_the_nearest(toy, copy):
    known = next(path.name for path in (copy / "runs").iterdir() if path.name.startswith("toyline"))
    for args in (("report", f"x{known}"), ("compare", known, f"x{known}"), ("dossier", f"x{known}")):
        assert f"unknown run 'x{known}'; did you mean '{known}'?" in complaint(toy(*args))


def test_an_unknown_command_is_answered_with_the_nearest():
    line = complaint(inside("reproduc", "takd"), status=2)
    assert line.startswith("unknown command 'reproduc'; did you mean 'reproduce'? known: bench, compare, ")


MISUSE = {
    "option": (("plan", "takd", "--tire", "smoke"), "No such option '--tire'"),
    "no paper": (("plan",), "Missing argument 'PAPER'"),
    "no number": (("plan", "takd", "--workers", "many"), "'many' is not a valid integer"),
}


@pytest.mark.parametrize(("args", "what"), MISUSE.values(), ids=MISUSE)
def test_wrong_usage_is_one_line_too(store, args, what):
    line = complaint(inside(*args), status=2)
    assert what in line
    assert line.endswith("see 'kdbench plan --help'")


@pytest.mark.parametrize("seeds", ["x", "0", "-1", "1,1", "1,-2", "1,", ""])
def test_seeds_that_are_none(store, seeds):
    line = complaint(inside("reproduce", "takd", "--tier", "smoke", "--seeds", seeds))
    assert "seeds" in line
    assert "a count" in line
    assert not store.exists()


@pytest.mark.parametrize("option", ["--workers", "--threads"])
def test_nobody_to_do_the_work(store, option):
    assert "counts from 1 up" in complaint(inside("reproduce", "takd", option, "0"))


def test_a_gpu_that_is_not_there(store, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = complaint(inside("reproduce", "takd", "--device", "cuda"))
    assert line.startswith("device 'cuda' cannot be used: torch finds no GPU; use --device cpu")


def test_a_data_set_that_the_paper_has_no_study_on(toy, store):
    line = complaint(toy("plan", "toyline", "--dataset", "cifar10"))
    assert line == "'toyline' has no study on 'cifar10'; its data sets: mnist1d"


# ------------------------------------------------------------------------------------------------------- json and debug


def test_json_says_it_as_json(store):
    done = inside("reproduce", "tkad", "--json")
    assert "did you mean 'takd'?" in complaint(done)
    error = json.loads(done.stdout)["error"]
    assert error["what"] == "unknown paper 'tkad'"
    assert error["cure"].startswith("did you mean 'takd'?")
    assert error["where"] is None
    done = inside("plan", "takd", "--tire", "smoke", "--json")
    assert json.loads(done.stdout)["error"]["what"].startswith("No such option '--tire'")


@pytest.mark.parametrize("args", [("--debug", "show", "tkad"), ("show", "tkad", "--debug")])
def test_debug_shows_the_traceback(args):
    done = inside(*args, check=1)
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.splitlines()[-1].startswith("kdbench: error: unknown paper 'tkad'")


def test_a_fault_of_kdbench_itself_says_so(monkeypatch):
    def broken():
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("kdbench.plugins.registry", broken)
    (line,) = inside("list", check=1).stderr.splitlines()
    assert line.startswith("kdbench: error: internal error: ZeroDivisionError: a fault; --debug shows where")


# ----------------------------------------------------------------------------------------------------------------- data


def cifar(tmp_path, *, cut=0, garbage=False):
    """An archive in CIFAR-10's layout, ten records a file; ``cut`` bytes short, or no archive at all."""
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
            content = (b"\x03" + os.urandom(3072)) * 10
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = path.read_bytes()
    path.write_bytes(os.urandom(2000) if garbage else data[: len(data) - cut])
    return path


def test_a_data_folder_that_is_missing(store, tmp_path):
    options = ("--tier", "smoke", "--dataset", "cifar10", "--data-dir", str(tmp_path / "nowhere"))
    line = complaint(inside("reproduce", "takd", *options))
    assert line.startswith(f"the data folder does not exist [{tmp_path / 'nowhere'}]; it may hold ")


def test_a_data_folder_without_the_data(store, tmp_path):
    line = complaint(inside("plan", "takd", "--dataset", "cifar10", "--data-dir", str(tmp_path)))
    assert line.startswith(f"no CIFAR-10 in the data folder [{tmp_path}]; looked for ")


@pytest.mark.parametrize("damage", [{"cut": 4000}, {"garbage": True}], ids=["truncated", "unreadable"])
def test_an_archive_that_is_damaged(store, tmp_path, damage):
    archive = cifar(tmp_path, **damage)
    options = ("--tier", "smoke", "--dataset", "cifar10", "--data-dir", str(tmp_path), "--json")
    done = inside("reproduce", "takd", *options)
    line = complaint(done)
    assert line.startswith("the archive cannot be read: ")
    assert line.endswith(f"[{archive}]; is the download complete? fetch it again")
    assert json.loads(done.stdout)["error"]["where"] == str(archive)
    assert not store.exists()


def test_data_that_is_not_the_official_one_is_no_error_but_never_verified(tmp_path):
    cifar(tmp_path)
    done = inside("data", "verify", "cifar10", "--data-dir", str(tmp_path), check=1)
    assert "data is not the official CIFAR-10" in done.stdout


# ------------------------------------------------------------------------------------------------------- the disk


@contextlib.contextmanager
def tmpfs(folder, **options):
    """A small file system of its own, where this process may mount one."""
    folder.mkdir()
    text = ",".join(f"{name}={value}" for name, value in options.items())
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", text, "tmpfs", str(folder)], capture_output=True)
    if not done or done.returncode:
        pytest.skip("no right to mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_nearly_full(tmp_path, monkeypatch):
    with tmpfs(tmp_path / "disk", size="1m") as disk:
        line = complaint(inside("reproduce", "takd", "--tier", "smoke", "--store", str(disk / "store")))
        assert line.startswith(f"less than 200 MB are free on the disk [{disk / 'store'}]; free some space")
        monkeypatch.setenv("KDBENCH_CACHE", str(disk / "cache"))
        line = complaint(inside("data", "fetch", "mnist1d"))
        assert line.startswith(f"no space left on the disk [{disk / 'cache' / 'mnist1d'}]; free some space")
        assert not list(disk.glob("cache/mnist1d/*.safetensors"))


def test_a_disk_that_is_nearly_full_without_mounting(store, monkeypatch):
    usage = shutil.disk_usage(store.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    line = complaint(inside("reproduce", "takd", "--tier", "smoke", "--store", str(store)))
    assert line.startswith(f"less than 200 MB are free on the disk [{store}]")


def test_a_disk_that_fills_up_in_the_middle_loses_nothing_finished(toy, tmp_path, monkeypatch):
    # Files rather than bytes run out here, which is the same refusal (ENOSPC) without writing megabytes.
    with tmpfs(tmp_path / "disk", size="400m", nr_inodes=20) as disk:
        monkeypatch.setenv("KDBENCH_STORE", str(disk / "store"))
        done = toy(*TOY, "--executor", "inline", check=1)
        lines = done.stderr.splitlines()
        assert lines
        assert all(line.startswith("kdbench: error: ") and "no space left on the disk [" in line for line in lines)
        assert all("free some space" in line for line in lines)
        before = set(stages(disk / "store"))
        assert before
        subprocess.run(["mount", "-o", "remount,nr_inodes=500", str(disk)], check=True)
        kept, made = reused(toy, *TOY)
        assert kept == before
        assert made


def test_a_store_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for store in (tmp_path / "file", tmp_path / "file" / "below"):
        line = complaint(inside("reproduce", "takd", "--tier", "smoke", "--store", str(store)))
        assert line == f"cannot write: Not a directory [{store}]; name another place with --store"


def test_a_store_on_a_read_only_disk(tmp_path):
    with tmpfs(tmp_path / "disk", size="300m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        line = complaint(inside("reproduce", "takd", "--tier", "smoke", "--store", str(disk / "store")))
        assert line == f"cannot write: Read-only file system [{disk / 'store'}]; name another place with --store"


# --------------------------------------------------------------------------------------------- what lies in the store


@pytest.mark.parametrize("content", ["", "{", '{"hash": 1}', "\x00" * 100], ids=["empty", "cut", "wrong", "zeros"])
def test_a_record_that_is_corrupt(toy, copy, content):
    folder = stages(copy)["fast seed 1"]
    (folder / "record.json").write_text(content)
    done = toy(*TOY, "--json")
    line = complaint(done)
    assert line.startswith("record.json is corrupt (")
    assert line.endswith(
        f"[{folder / 'record.json'}]; delete the folder {folder} and run again: only this stage is done anew"
    )
    assert json.loads(done.stdout)["error"]["where"] == str(folder / "record.json")


def test_the_cure_for_a_corrupt_record_cures_it(toy, copy):
    folder = stages(copy)["fast seed 1"]
    shutil.rmtree(folder)
    kept, made = reused(toy, *TOY)
    assert made == {"fast seed 1"}
    assert kept == {"slow seed 0", "fast seed 0", "slow seed 1"}


def test_a_run_file_that_is_corrupt(toy, copy):
    (broken,) = (copy / "runs").glob("toyline*")
    (other,) = (copy / "runs").glob("toy-*")
    (broken / "run.json").write_text('{"id": "x"')
    for args in (("report", broken.name), ("compare", other.name, broken.name), ("dossier", broken.name)):
        line = complaint(toy(*args))
        assert line.startswith("run.json is corrupt (")
        assert f"[{broken / 'run.json'}]; delete the run's folder" in line
    done = toy("runs")
    assert f"[{broken / 'run.json'}]" in complaint(done)
    assert done.stdout.startswith(other.name)
    kept, made = reused(toy, *TOY)
    assert len(kept) == 4
    assert not made


def test_weights_that_were_tampered_with(toy, copy):
    found = stages(copy)
    teacher = found["train plain4-x0.5 seed 0"] / "weights.safetensors"
    content = bytearray(teacher.read_bytes())
    content[-1] ^= 1
    teacher.write_bytes(content)
    later = [label for label in found if label.startswith(("teacher", "distil"))]
    assert len(later) == 2
    for label in later:
        shutil.rmtree(found[label])
    done = toy(*DISTIL)
    line = complaint(done, status=3)
    assert line.endswith(
        f"weights.safetensors does not match its record [{teacher}]; delete this stage's folder and run again"
    )
    assert "1 stages that need it were not run" in done.stdout
    assert set(stages(copy)) == set(found) - set(later)
    shutil.rmtree(teacher.parent)
    _, made = reused(toy, *DISTIL)
    assert made == {"train plain4-x0.5 seed 0", *later}


def test_two_runs_in_one_store_at_once(toy, site, store, tmp_path):
    go = tmp_path / "go"
    environment = {**os.environ, **on_path(site), "KDBENCH_TOY_GO": str(go)}
    command = [sys.executable, "-m", "kdbench", *TOY, "--executor", "toy-patient"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        try:
            end = time.monotonic() + 60
            while not list(store.glob("stages/*/spec.json")):
                assert first.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            line = complaint(toy(*TOY))
            assert line == (
                f"another run (process {first.pid}) is using this store [{store}]; "
                "wait until it ends, or name another place with --store"
            )
            assert "running" in toy("runs", check=0).stdout
            go.touch()
            _, errors = first.communicate(timeout=120)
        finally:
            first.kill()
    assert (first.returncode, errors) == (0, "")
    assert len(reused(toy, *TOY)[0]) == 4


# -------------------------------------------------------------------------------------------------- what a stage does


def test_a_loss_that_is_not_finite(toy, store):
    request = ("reproduce", "toynan", "--tier", "smoke")
    done = toy(*request, "--workers", "1")
    line = complaint(done, status=3)
    assert line.startswith("the loss is nan in epoch 1 of 1 [fast seed 0]; lower the learning rate (now 1e+38)")
    assert "1 stages, 0 of them reused" in done.stdout
    assert set(stages(store)) == {"slow seed 0"}

    again = toy(*request, "--executor", "inline", "--json", check=3)  # nothing failed is cached: it is tried again
    result = json.loads(again.stdout)
    assert result["status"] == "incomplete"
    assert [stage["label"] for stage in result["stages"] if stage["reused"]] == ["slow seed 0"]
    (failure,) = result["failures"]
    assert failure["label"] == "fast seed 0"
    assert failure["cause"] == line
    assert {value["cell"]: value["value"] is None for value in result["values"]} == {
        "table1/mnist1d/slow": False,
        "table1/mnist1d/fast": True,
    }
    debug = toy(*request, "--executor", "inline", "--debug", check=3)
    assert "Traceback (most recent call last):" in debug.stderr
    assert "loop.py" in debug.stderr


def test_a_plugin_that_does_not_import(cli, store, tmp_path):
    env = on_path(distribution(tmp_path / "site", "kdbench-broken", BROKEN))
    done = cli("list", env=env, check=0)
    assert "takd  Improved" in done.stdout
    assert done.stderr.splitlines() == [
        "plugin 'kdbench-broken' is not loaded: import: it needs the module 'nobodys', which is not installed; "
        "install it, for instance by 'pip install kdbench-broken' with its requirements"
    ]
    line = complaint(cli("reproduce", "broken", env=env))
    assert line.startswith("unknown paper 'broken'")
    assert "plugin 'kdbench-broken' is not loaded: import: it needs the module 'nobodys', which" in line
