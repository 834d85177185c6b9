"""Files that are written whole: by several at once, beside links and strays, and in processes that are killed."""

import contextlib
import multiprocessing
import os
import threading
import time

import pytest

from sqs_jax import files
from sqs_jax.messages import cut, is_text, one_line, quoted, shown


@pytest.fixture
def precious(tmp_path):
    """A folder of the user's own, with something hidden in it."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    (folder / ".ssh" / "key").write_text("mine")
    return folder


def test_a_file_appears_whole_and_nothing_is_left_beside_it(tmp_path):
    files.write(tmp_path / "a.txt", "σ")
    files.write(tmp_path / "a.txt", b"\x00new")
    assert (tmp_path / "a.txt").read_bytes() == b"\x00new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", [".report.html.partial", "report.html"])
def test_no_link_is_followed(name, precious, tmp_path):
    (tmp_path / name).symlink_to(precious / ".ssh" / "key")
    files.write(tmp_path / "report.html", "page")
    assert (precious / ".ssh" / "key").read_text() == "mine"
    assert (tmp_path / "report.html").read_text() == "page"
    assert not (tmp_path / "report.html").is_symlink()


def test_writers_at_once_never_meet(tmp_path):
    contents, errors = [bytes([i]) * 100_000 for i in range(8)], []

    def writer(content):
        try:
            for _ in range(40):
                files.write(tmp_path / "f", content)
                assert (tmp_path / "f").read_bytes() in contents
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=writer, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_cannot_be_written_leaves_the_old_one_and_names_the_place(tmp_path):
    (tmp_path / "place").mkdir()
    with pytest.raises(OSError, match="directory") as error:
        files.write(tmp_path / "place", "x")
    assert error.value.filename == str(tmp_path / "place")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    with pytest.raises(FileNotFoundError), files.appearing(tmp_path / "gone" / "x"):
        pass


def test_a_folder_is_whole_or_absent(tmp_path):
    with contextlib.suppress(ZeroDivisionError), files.appearing(tmp_path / "a") as partial:
        (partial / "half").write_text("x")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with files.appearing(tmp_path / "a") as partial:
        (partial / "x").write_text("x")
    with pytest.raises(FileExistsError), files.appearing(tmp_path / "a") as partial:
        (partial / "y").write_text("y")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    files.remove(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_only_places_of_our_own_naming_are_cleaned_and_never_through_a_link(precious, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    ours = [f".x.{'0a' * 8}.partial", f".a b.{'f' * 16}.partial"]
    others = [".ssh", ".nfs000001", ".DS_Store", ".x.partial", f".x.{'g' * 16}.partial", f"x.{'0' * 16}.partial"]
    for name in [ours[0], *others]:
        (folder / name).mkdir()
        (folder / name / "in").write_text("x")
    (folder / ours[1]).symlink_to(precious)
    files.clean(folder)
    assert {path.name for path in folder.iterdir()} == set(others)
    assert (precious / ".ssh" / "key").read_text() == "mine"
    assert [path.name for path in files.visible(folder)] == [others[-1]]
    linked = tmp_path / "linked"
    linked.symlink_to(precious)
    files.clean(linked)
    assert (precious / ".ssh" / "key").read_text() == "mine"


def test_of_a_shared_folder_only_the_places_of_one_name_are_cleaned(tmp_path):
    ours, others = f".text.{'0' * 16}.partial", f".texts.{'0' * 16}.partial"
    for name in (ours, others):
        (tmp_path / name).mkdir()
    files.clean(tmp_path, "text")
    assert [path.name for path in tmp_path.iterdir()] == [others]


def _hold(path, held):
    with files.locked(path) as mine:
        assert mine
        held.set()
        time.sleep(60)


def test_a_lock_is_let_go_when_its_process_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "deep" / "lock", held))
    process.start()
    assert held.wait(60)
    with files.locked(tmp_path / "deep" / "lock", wait=False) as mine:
        assert not mine
    process.kill()
    process.join()
    with files.locked(tmp_path / "deep" / "lock", wait=False) as mine:
        assert mine


def test_a_mode_is_that_of_any_new_file(tmp_path):
    old = os.umask(0o022)
    try:
        files.write(tmp_path / "f", "x")
        with files.appearing(tmp_path / "d"):
            pass
    finally:
        os.umask(old)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "fd"] == [0o644, 0o755]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb\rc\nd", "a\\x1b[2Jb\\rc d"),
        ("σ λ \u202e \ud800 \x9b", "σ λ \\u202e \\ud800 \\x9b"),
        ("a" * 10**6, None),
        ("", ""),
    ],
)
def test_what_strangers_wrote_is_harmless_on_a_terminal(text, shown):
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 1200
    assert shown is None or line == shown


def test_quoted_values_are_cut_in_the_middle():
    assert quoted("abc") == "'abc'"
    assert len(quoted("x" * 10**6)) == 100
    assert quoted("x" * 10**6).startswith("'xxx")
    assert quoted("x" * 10**6).endswith("xxx'")
    assert quoted(10**5000) == "a whole number of 16610 bits"
    assert cut("abc", 3) == "abc"
    assert is_text("σ")
    assert not is_text("a\0")
    assert not is_text("\udcff")


def test_text_of_several_lines_keeps_them():
    assert shown("a\tb\n\x1b[2Jσ") == "a\tb\n\\x1b[2Jσ"
