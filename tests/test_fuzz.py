"""A short run of the fuzzer, for every file that is read; `make fuzz` runs it for long."""

import random

import pytest

from tests.fuzz import fuzz, targets

FEW = 8  # damaged files each; those of a checkpoint take longest


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("fuzz")
        patch.setenv("SQS_CACHE_DIR", str(folder / "cache"))
        yield targets(folder)


@pytest.mark.filterwarnings("ignore")
def test_no_damaged_file_ends_in_anything_but_a_line(result, tmp_path):
    assert len(result) > 25
    for name, target in result.items():
        few = 1 if name.startswith("checkpoint") else FEW
        fuzz(target, random.Random(name), lambda tries, few=few: tries >= few, tmp_path / "kept")
