"""Settings of every test: no promotion of ranks, and folders of their own."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Here what the compiler makes of the arithmetic is in question (not of kernels: no device runs what interpreters make
# of them). They are marked `arithmetic`. All other tests wait for compilers: what is compiled there runs for seconds,
# and most of the optimizations are off.
_COMPILED_IN_FULL = {"activation", "dispatch", "glu", "lowering", "modules", "sharding", "transformer"}

# Of either kind the files that take minutes begin first: one that begins last keeps a single process busy to the end.
_LONG = (
    "processes", "experiment_tables", "adopt_runs", "mesh", "benchmarks", "readme", "loop", "image_page", "dataset",
    "damage", "adoption", "language_model", "sweep", "together", "notebook", "kernels", "krylov", "model_reading",
    "derivatives", "transformer",
)  # fmt: skip


def is_compiled_in_full(path: Path) -> bool:
    """Whether the tests of a file see all optimizations, as those of the compilers of accelerators do."""
    return path.parent.name == "aot" or path.stem.removeprefix("test_") in _COMPILED_IN_FULL


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Marks what is compiled in full, and puts it last; of each kind long files come first."""
    places = {name: place for place, name in enumerate(_LONG)}

    def place(item):
        return is_compiled_in_full(item.path), places.get(item.path.stem.removeprefix("test_"), len(_LONG))

    items.sort(key=place)
    for item in items:
        if is_compiled_in_full(item.path):
            item.add_marker("arithmetic")


@pytest.fixture(scope="module", autouse=True)
def haste(request):
    """Most of the compiler's optimizations are off but where they are in question, in processes of the tests too."""
    wanted = not is_compiled_in_full(request.path)
    if (os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1") != wanted:
        jax.clear_caches()  # what is compiled in another way gives other numbers, in the last digits
        jax.config.update("jax_disable_most_optimizations", wanted)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(wanted))


@pytest.fixture(scope="session")
def stories(original_files, tmp_path_factory):
    """The folder of the small language model stories260K, and a text of stories: a short one, for all is tokenized."""
    whole = original_files / "tinystories" / "tinystories-train-first5000-lowercase.txt"
    text = tmp_path_factory.mktemp("text") / "stories.txt"
    text.write_bytes(whole.read_bytes()[:300_000])
    return original_files / "models" / "stories260K", text


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory):
    """Prepared data sets go where no other run of the tests has left any, unless the caller names a folder."""
    if "SQS_CACHE_DIR" not in os.environ:
        os.environ["SQS_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def strict_dtypes():
    """No implicit promotion of dtypes: code of users may ask for that (optax does not work under it)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def original_files() -> Path:
    """Folder with the data sets' original files."""
    folder = os.environ.get("SQS_DATA_DIR")
    if not folder:
        pytest.skip("SQS_DATA_DIR does not name a folder with the original files")
    return Path(folder)


@pytest.fixture
def browser():
    """Headless Chromium."""
    from benchmarks.screenshot import chromium  # what it imports is not everywhere where kernels are compiled

    result = chromium()
    if result is None:
        pytest.skip("Chromium and its ChromeDriver are not installed")
    yield result
    result.quit()
