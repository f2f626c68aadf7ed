"""New images are given once, when they are complete; rows are neither lost nor repeated."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import pytest

from ipca_sklearn.watching import FolderWatcher, RowFile, run_command, watch
from ipca_sklearn.watching import _folder as folder_module


@pytest.fixture
def incoming(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def put(folder, name, content=b"x", modified=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if modified is not None:
        os.utime(path, ns=(modified, modified))
    return str(path)


def polling(folder, **parameters):
    return FolderWatcher(folder, **{"events": False, "settle": 1.0} | parameters)


def names(images):
    return [os.path.basename(image.path) for image in images]


def score(paths):
    """As a model does: what holds "bad" cannot be read."""
    for path in paths:
        broken = not os.path.exists(path) or b"bad" in Path(path).read_bytes()
        yield {"score": None, "error": "broken"} if broken else {"score": -float(len(path)), "label": 1, "error": None}


def scored(folder, table, n, **parameters):
    """Watch until there are n rows in all, and return their paths."""
    with polling(folder, settle=0, interval=0.01, **parameters) as watcher, RowFile(table) as rows:
        left = n - sum(1 for _ in rows)
        for number, _ in enumerate(watch(score, watcher, rows), 1):
            if number == left:
                watcher.stop()
    with RowFile(table) as rows:
        return [os.path.basename(path) for path, *_ in rows.image_keys()]


def test_a_file_is_complete_when_it_has_stood_still(incoming):
    put(incoming, "a.png", b"1")
    put(incoming, "a.txt")
    watcher = polling(incoming)
    assert watcher.look(0.0) == []
    assert watcher.look(0.9) == []
    path = put(incoming, "a.png", b"12")  # it grows
    assert watcher.look(1.0) == []
    assert watcher.look(1.9) == []
    (image,) = watcher.look(2.1)
    assert image == (path, 2, os.stat(path).st_mtime_ns, 0)
    assert watcher.look(10.0) == []


def test_files_come_in_order_of_time_and_hidden_ones_when_they_are_renamed(incoming):
    put(incoming, "b.png", modified=3)
    put(incoming, "deep/er/c.png", modified=2)
    put(incoming, "a.jpg", modified=5)
    put(incoming, ".d.png", modified=1)
    put(incoming, ".hidden/e.png", modified=1)
    watcher = polling(incoming)
    watcher.look(0.0)
    assert names(watcher.look(1.0)) == ["c.png", "b.png", "a.jpg"]
    (incoming / ".d.png").rename(incoming / "d.png")
    watcher.look(2.0)
    assert names(watcher.look(3.0)) == ["d.png"]


def test_replaced_content_is_new_and_touched_ownership_is_not(incoming):
    path = put(incoming, "a.png", b"1", modified=1)
    watcher = polling(incoming, settle=0)
    assert names(watcher.look(0.0)) == ["a.png"]
    os.chmod(path, 0o600)
    assert watcher.look(2.0) == []
    put(incoming, "a.png", b"2", modified=2)
    assert [image.modified_ns for image in watcher.look(4.0)] == [2]


def test_a_file_that_cannot_be_read_is_tried_again_and_holds_up_nobody(incoming):
    put(incoming, "bad.png", b"bad", modified=1)
    watcher = polling(incoming, settle=0, tries=3)
    (bad,) = watcher.look(0.0)
    assert watcher.retry(bad, 0.0)
    put(incoming, "good.png")
    assert names(watcher.look(0.4)) == []  # the folder was listed a moment ago
    assert names(watcher.look(2.0)) == ["bad.png", "good.png"]
    assert watcher.retry(bad._replace(tries=1), 2.0)
    (bad,) = watcher.look(4.0)
    assert bad.tries == 2 and not watcher.retry(bad, 4.0)
    assert watcher.look(100.0) == []


def test_unreadable_and_vanished_images_have_one_row_with_the_reason(incoming, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_RETRY", 0.01)
    put(incoming, "a.png", b"bad", modified=1)
    put(incoming, "b.png", modified=2)
    table = tmp_path / "rows.csv"
    assert scored(incoming, table, 2) == ["b.png", "a.png"]
    with RowFile(table) as rows:
        assert [row["error"] for row in rows] == [None, "broken"]
        assert [row["score"] is None for row in rows] == [False, True]

    gone = put(incoming, "gone.png")
    with polling(incoming, settle=0) as watcher, RowFile(table) as rows:

        def goes(paths):
            os.remove(gone)
            return score(paths)

        found = watch(goes, watcher, rows)
        assert next(found)["path"] == gone
        found.close()


def test_a_restart_neither_loses_nor_repeats(incoming, tmp_path):
    table = tmp_path / "rows.csv"
    for number in range(5):
        put(incoming, f"{number}.png", modified=number)
    with polling(incoming, settle=0, batch_size=4) as watcher, RowFile(table) as rows:
        found = watch(score, watcher, rows)
        for _ in range(3):  # in the middle of a batch
            next(found)
        found.close()
    with table.open("ab") as file:
        file.write(b"/in/3.p")  # a row that was cut
    put(incoming, "later.png", modified=9)
    with pytest.warns(UserWarning, match="cut after 7 bytes"):
        assert scored(incoming, table, 6) == ["0.png", "1.png", "2.png", "3.png", "4.png", "later.png"]
    put(incoming, "1.png", b"another", modified=1)  # while it was down
    assert scored(incoming, table, 7)[6:] == ["1.png"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_that_is_cut_anywhere_is_continued(suffix, tmp_path):
    table = tmp_path / f"rows{suffix}"
    keys = [("/in/a\n,\"b'.png", 1, 10**18 + 1), (os.fsdecode(b"/in/\xff.png"), 2, 5)]
    values = [{"path": path, "n_bytes": size, "modified_ns": time, "score": -0.1 / 3} for path, size, time in keys]
    ends = []
    with RowFile(table) as rows:
        ends.append(table.stat().st_size)
        for row in values:
            rows.append(row)
            ends.append(table.stat().st_size)
        assert list(rows.image_keys()) == keys
        assert [row["score"] for row in rows] == [-0.1 / 3] * 2
    whole = table.read_bytes()
    for size in range(len(whole)):
        table.write_bytes(whole[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with RowFile(table) as rows:
                n_rows = sum(end <= size for end in ends[1:])
                assert list(rows.image_keys()) == keys[:n_rows]
                for row in values[n_rows:]:
                    rows.append(row)
        assert table.read_bytes() == whole


def test_tables_of_others_are_refused_and_stay(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("path,score\na.png,1\n")
    with pytest.raises(ValueError, match="other columns"):
        RowFile(table)
    assert table.read_text() == "path,score\na.png,1\n"
    table.write_text("a letter")
    with pytest.raises(ValueError, match="no table of"):
        RowFile(table)
    (tmp_path / "rows.jsonl").write_text('{"path": "a.png"}\n')
    with RowFile(tmp_path / "rows.jsonl") as rows, pytest.raises(ValueError, match=r"row 1 of .* is damaged"):
        list(rows.image_keys())
    with pytest.raises(ValueError, match=r"neither \.csv nor \.jsonl"):
        RowFile(tmp_path / "rows.txt")


def test_a_table_has_one_writer_and_must_stay_where_it_is(tmp_path):
    pytest.importorskip("fcntl")
    table = tmp_path / "rows.csv"
    with RowFile(table) as rows:
        with pytest.raises(OSError, match="another process"):
            RowFile(table)
        table.rename(tmp_path / "old.csv")
        with pytest.raises(OSError, match="moved or removed"):
            rows.append({"path": "/in/a.png"})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    table = tmp_path / "rows.csv"
    with RowFile(table) as rows:
        rows.append({"path": "/in/a.png", "n_bytes": 1, "modified_ns": 2})
        before = table.read_bytes()

        def full(number):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*rows\.csv"):
            rows.append({"path": "/in/b.png", "n_bytes": 1, "modified_ns": 2})
    assert table.read_bytes() == before


def test_a_killed_process_is_continued(incoming, tmp_path):
    """kill -9 of real processes: every file has one row."""
    table = tmp_path / "rows.jsonl"
    code = f"""
import sys, time
from ipca_sklearn.watching import FolderWatcher, RowFile, watch
def score(paths):
    for path in paths:
        time.sleep(0.002)
        yield {{"score": 1.0, "error": None}}
watcher = FolderWatcher({str(incoming)!r}, settle=0, interval=0.01, events=False)
with watcher, RowFile({str(table)!r}) as rows:
    for row in watch(score, watcher, rows):
        pass
"""
    for number in range(300):
        put(incoming, f"{number}.png")
    for n_rows in (20, 120):
        process = subprocess.Popen([sys.executable, "-c", code])
        while not table.exists() or table.read_bytes().count(b"\n") < n_rows:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        put(incoming, f"after-{n_rows}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scored(incoming, table, 302)
    assert sorted(found) == sorted(path.name for path in incoming.iterdir())


def test_what_is_remembered_is_what_lies_in_the_folder(incoming, tmp_path):
    """1,200 images pass through the folder, 100 at a time."""
    table = tmp_path / "rows.csv"
    sizes, n_rows = [], 0
    with polling(incoming, settle=0, interval=0.001, batch_size=100) as watcher, RowFile(table) as rows:
        for number in range(100):
            put(incoming, f"{number}.png")
        tracemalloc.start()
        for row in watch(score, watcher, rows):
            n_rows += 1
            os.remove(row["path"])
            if n_rows % 100 == 0:
                assert len(watcher._given) <= 200 and not watcher._waiting and not watcher._without_event
                sizes.append(tracemalloc.get_traced_memory()[0])
                for number in range(100):
                    put(incoming, f"{n_rows + number}.png")
            if n_rows == 1200:
                watcher.stop()
        tracemalloc.stop()
    assert n_rows == 1200
    assert sizes[-1] < sizes[4] + 30_000, sizes  # 700 digests alone take more than 60,000 bytes


def test_a_folder_that_goes_forgets_nothing_and_another_in_its_place_is_compared_with_the_rows(incoming, tmp_path):
    path = put(incoming, "a.png", modified=1)
    done = []
    watcher = polling(incoming, settle=0, done=lambda: iter(done))
    (image,) = watcher.look(0.0)
    done.append(image.key)
    incoming.rename(tmp_path / "away")
    with pytest.warns(UserWarning, match="is not there"):
        assert watcher.look(2.0) == []
    (tmp_path / "away").rename(incoming)
    assert watcher.look(4.0) == []
    incoming.rename(tmp_path / "away")
    assert put(incoming, "a.png", modified=1) == path  # another folder, as when a disk is mounted
    put(incoming, "b.png")
    assert names(watcher.look(6.0)) == ["b.png"]


def test_a_subfolder_that_was_away_for_a_moment_is_not_given_again(incoming, tmp_path):
    """Why the listings are not watchdog's PollingObserver: to it, these images are deleted, and then new ones."""
    put(incoming, "camera/a.png", modified=1)
    put(incoming, "b.png", modified=2)
    watcher = polling(incoming, settle=0)
    assert names(watcher.look(0.0)) == ["a.png", "b.png"]
    (incoming / "camera").rename(tmp_path / "away")
    os.remove(incoming / "b.png")
    assert watcher.look(2.0) == [] and len(watcher._given) == 1  # a file that has gone is forgotten
    (tmp_path / "away").rename(incoming / "camera")
    put(incoming, "camera/new.png")
    assert names(watcher.look(4.0)) == ["new.png"]
    assert watcher.look(6.0) == []
    (incoming / "camera").rename(tmp_path / "away")
    assert watcher.look(8.0) == []
    assert watcher.look(10.0 + folder_module._LONGEST_ABSENCE) == [] and not watcher._given
    (tmp_path / "away").rename(incoming / "camera")
    assert names(watcher.look(2000.0)) == ["a.png", "new.png"]


def test_a_folder_that_cannot_be_listed_for_a_moment_is_not_given_again(incoming, monkeypatch):
    put(incoming, "a.png", modified=1)
    put(incoming, "camera/b.png", modified=2)
    watcher = polling(incoming, settle=0)
    assert names(watcher.look(0.0)) == ["a.png", "b.png"]

    def refuses(folder):
        raise OSError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "list_images", lambda *_, **__: [])
        patch.setattr(folder_module.os, "scandir", refuses)
        assert watcher.look(2.0) == []
    assert watcher.look(4.0) == []


def test_events_tell_of_files_and_of_renames(incoming):
    pytest.importorskip("watchdog")
    with FolderWatcher(incoming, settle=0.05) as watcher:
        arrived = []
        batches = watcher.batches(idle=lambda: arrived or act())

        def act():
            arrived.append(put(incoming, "deep/.a.png"))
            os.rename(arrived[0], incoming / "deep" / "a.png")

        assert names(next(batches)) == ["a.png"]
        assert watcher._next_listing - time.monotonic() > 10  # no listing has found it
        assert watcher._events is not None


def test_without_watchdog_or_events_the_folder_is_listed_and_a_warning_says_so(incoming, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "watchdog.observers", None)
        watcher = FolderWatcher(incoming, settle=0)
        with pytest.warns(UserWarning, match=r"watchdog is not installed .* is listed every 1 s instead"):
            watcher.look(0.0)
        put(incoming, "a.png")
        assert names(watcher.look(1.0)) == ["a.png"]

    class Silent:
        news = frozenset()

        def __init__(self, folder):
            self.closed = False

        def take(self):
            return self.news

        def close(self):
            self.closed = True

    monkeypatch.setattr(folder_module, "FolderEvents", Silent)
    watcher = FolderWatcher(incoming, settle=0)
    assert names(watcher.look(0.0)) == ["a.png"]
    put(incoming, "b.png")
    assert watcher.look(29.0) == []
    Silent.news = None  # too many to be kept
    assert names(watcher.look(29.5)) == ["b.png"]
    put(incoming, "new/c.png")
    Silent.news = {str(incoming / "new")}  # of a folder that was moved here
    assert names(watcher.look(60.0)) == ["c.png"]
    Silent.news = set()
    assert watcher.look(66.0) == [] and watcher._events is not None
    put(incoming, "d.png")
    assert watcher.look(89.0) == []
    assert names(watcher.look(90.0)) == ["d.png"]
    events = watcher._events
    with pytest.warns(UserWarning, match=r"no event came for .*d\.png"):
        watcher.look(96.0)
    assert events.closed and watcher._events is None
    put(incoming, "e.png")
    assert names(watcher.look(97.0)) == ["e.png"]


def test_no_events_are_expected_for_what_lies_in_another_folder_in_its_place(incoming, tmp_path, monkeypatch):
    class Silent:
        def __init__(self, folder):
            self.take = set
            self.close = list

    monkeypatch.setattr(folder_module, "FolderEvents", Silent)
    watcher = FolderWatcher(incoming, settle=0)
    assert watcher.look(0.0) == []
    incoming.rename(tmp_path / "away")
    put(incoming, "a.png")
    assert names(watcher.look(30.0)) == ["a.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert watcher.look(40.0) == []
    assert watcher._events is not None


def test_a_command_gets_the_row_and_no_shell(tmp_path):
    output = tmp_path / "it came; echo $HOME"
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
    row = {"path": os.fsdecode(b"/in/\xff.png"), "score": float("nan"), "label": -1}
    assert run_command([sys.executable, "-c", code, str(output)], row) is None
    assert json.loads(output.read_text()) == row | {"score": None}


def test_a_command_that_fails_or_hangs_is_a_message():
    assert run_command([sys.executable, "-c", "import sys; sys.exit(3)"], {}) == "it ended with exit code 3"
    assert "could not be started" in run_command(["/no/such program"], {})
    start = time.monotonic()
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert run_command([sys.executable, "-c", script], {}, seconds=0.5) == "it took more than 0.5 s and was killed"
    assert time.monotonic() - start < 30


def test_a_monitor_is_where_it_was_after_a_restart(incoming, tmp_path):
    class Monitor:
        def __init__(self):
            self.scores = []

        @property
        def alarm_(self):
            return len(self.scores) >= 3

        def update_scores(self, scores):
            self.scores += scores if isinstance(scores, list) else [scores]

    table = tmp_path / "rows.csv"
    for number in range(4):
        put(incoming, f"{number}.png", modified=number)
    monitors = []
    for n_rows in (2, 4):
        monitors.append(Monitor())
        with polling(incoming, settle=0) as watcher, RowFile(table) as rows:
            found = watch(score, watcher, rows, monitor=monitors[-1])
            for _ in range(2):
                next(found)
            found.close()
        assert len(monitors[-1].scores) == n_rows
    with table.open(newline="") as file:
        assert [row["drift"] for row in csv.DictReader(file)] == ["0", "0", "1", "1"]
    assert monitors[1].scores[:2] == monitors[0].scores


@pytest.mark.parametrize(
    ("parameters", "message"), [({"settle": -1}, "settle=-1"), ({"interval": 0}, "interval=0"), ({"tries": 0}, "tries")]
)
def test_settings_out_of_range_are_refused(parameters, message, incoming):
    with pytest.raises(ValueError, match=message):
        FolderWatcher(incoming, **parameters)


def test_what_is_no_folder_is_refused(incoming):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        FolderWatcher(incoming / "none")
    with pytest.raises(NotADirectoryError, match="is no folder"):
        FolderWatcher(put(incoming, "a.png"))
