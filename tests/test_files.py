"""Names of files that are printed, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ipca_sklearn._utils._files import naming, printable, remove_leftovers, replacing


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.png", "plain name.png"),
        ("Größe-部品-кот.png", "Größe-部品-кот.png"),
        ("a\x1b]0;title\x07b", r"a\x1b]0;title\x07b"),
        ("two\nlines\r\tmore", r"two\nlines\r\tmore"),
        ("c1\x9b2J", r"c1\x9b2J"),
        ("gnp.\u202egpj", r"gnp.\u202egpj"),  # turns the direction of what follows
        (b"caf\xe9.png", r"caf\xe9.png"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        (Path("folder", "a\x7f.png"), os.path.join("folder", r"a\x7f.png")),
        (ValueError("of \x1b[0m"), r"of \x1b[0m"),
    ],
)
def test_a_printed_name_has_no_control_characters(name: object, shown: str) -> None:
    assert printable(name) == shown
    assert printable(name).isprintable()
    printable(name).encode("utf-8")


def write(path: str | Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_file_is_there_when_it_is_whole_and_nothing_else_is(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as file:
        file.write(b"new")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x") as file:
        file.write(b"newer")
        raise ZeroDivisionError
    assert (tmp_path / "x").read_bytes() == b"new"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_permissions_of_the_old_file_are_kept(tmp_path: Path, mode: int) -> None:
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(mode)
    with replacing(tmp_path / "x") as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == mode  # also while it is written
        file.write(b"new")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write(tmp_path / "x", b"new")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_followed_to_its_file_and_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_bytes(b"old")
    (tmp_path / "link").symlink_to(Path("there", "x"))
    write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "x").read_bytes() == b"new"
    (tmp_path / "new").symlink_to(Path("there", "y"))
    write(tmp_path / "new", b"newer")
    assert (tmp_path / "there" / "y").read_bytes() == b"newer"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write(tmp_path / "loop", b"")


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "link to a device"])
def test_only_regular_files_are_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(os.devnull)
    else:
        path.symlink_to(os.devnull)
    before = os.lstat(path)
    with pytest.raises(OSError, match=f"{path.name} cannot be written: it is (a folder|no regular file)"):
        write(path, b"")
    assert os.lstat(path).st_ino == before.st_ino
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_unfinished_files_have_names_that_differ_each_time_and_follow_no_link(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as first, replacing(tmp_path / "x") as second:
        assert first.name != second.name
        assert len({first.name, second.name} & set(map(str, tmp_path.iterdir()))) == 2


@pytest.mark.parametrize(
    "name", ["ck", "ck.screw", ".ck", "ck.0123456789abcdef0123456789abcdef", "c" * 250, b"caf\xe9"]
)
def test_leftovers_of_one_file_are_recognised_exactly(tmp_path: Path, name: str | bytes) -> None:
    path = Path(os.fsdecode(name) if isinstance(name, bytes) else name)
    others = ["ck.screw", "ck", "ck.0123456789abcdef0123456789abcdef.tmp", "c" * 249]
    left = []
    for other in [other for other in others if other != str(path)]:
        with pytest.raises(InterruptedError), replacing(tmp_path / other) as file:
            os.link(file.name, f"{file.name}.kept")
            raise InterruptedError
        left.append(Path(file.name))
        os.rename(f"{file.name}.kept", file.name)
    (tmp_path / f".{path}.tmp").touch() if len(str(path)) < 200 else None
    write(tmp_path / path, b"new")
    assert all(one.exists() for one in left)
    assert (tmp_path / path).read_bytes() == b"new"


KILLED = """
import sys, time
from ipca_sklearn._utils._files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print(file.name, flush=True)
    time.sleep(60)
"""


def test_the_unfinished_file_of_a_living_process_stays_and_that_of_a_killed_one_goes(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    unfinished = Path(writer.stdout.readline().strip())
    write(tmp_path / "x", b"mine")
    assert unfinished.exists()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert unfinished.exists()
    write(tmp_path / "x", b"mine")
    assert names(tmp_path) == ["x"]


def test_leftovers_are_removed_while_others_write_and_nothing_is_lost(tmp_path: Path) -> None:
    done = threading.Event()

    def clean() -> None:
        while not done.is_set():
            remove_leftovers(tmp_path / "x")

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for number in range(300):
            write(tmp_path / "x", b"%d" % number)
            assert (tmp_path / "x").read_bytes() == b"%d" % number
    finally:
        done.set()
        cleaner.join()
    assert names(tmp_path) == ["x"]


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "x", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as with a full disk, writing fails in the middle
    try:
        with pytest.raises(OSError) as caught:
            write(tmp_path / "x", bytes(1_000_000))
        with pytest.raises(OSError) as late:  # when what is buffered is written at the end
            write(tmp_path / "x", b"")
            with replacing(tmp_path / "x") as file:
                file.write(bytes(99_000))
                file.write(bytes(2_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.filename == late.value.filename == str(tmp_path / "x")
    assert caught.value.errno == errno.EFBIG
    assert names(tmp_path) == ["x"]


def test_an_error_without_a_path_gets_one_and_others_stay_as_they_are() -> None:
    with pytest.raises(OSError, match=r"No space left on device: 'x\.csv'"), naming("x.csv"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError), naming("x.csv"):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    for error in (OSError("text"), FileNotFoundError(errno.ENOENT, "none", "y"), ValueError()):
        with pytest.raises(type(error)) as caught, naming("x.csv"):
            raise error
        assert caught.value is error
