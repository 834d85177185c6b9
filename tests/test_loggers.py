"""The loggers of the documentation write files that hold what metrics.jsonl has."""

import json
import re
import struct
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "loggers.md"


@pytest.fixture(scope="module")
def runs():
    """The folder in which the page's Python has left two runs."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
        names["wandb"].teardown()  # a finished run may still be on its way to the disk: its process ends here
    return names["runs"]


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_has_the_rows(runs):
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (runs / "tensorboard").glob("events*")
    content, place, found = path.read_bytes(), 0, {}
    while place < len(content):  # records: length, its checksum, an event, its checksum
        (length,) = struct.unpack_from("<Q", content, place)
        event = Event.FromString(content[place + 12 : place + 12 + length])
        place += length + 16
        for value in event.summary.value:
            found.setdefault(event.step, {})[value.tag] = value.simple_value
    expected = rows(runs / "one")
    assert sorted(found) == [row["step"] for row in expected]
    for row in expected:
        logged = found[row.pop("step")]
        assert logged.pop("images_per_second") > 0
        assert logged == pytest.approx(row, rel=1e-6)  # TensorBoard keeps float32


def wandb_records(path: Path):
    """The records of a file of Weights & Biases: blocks of 32 KiB, each of pieces with checksum, length and kind."""
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def test_weights_and_biases_has_the_rows(runs):
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (runs / "wandb").glob("offline-run-*/*.wandb")
    found = {}
    for content in wandb_records(path):
        record = Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found[items["_step"]] = items
    expected = rows(runs / "two")
    assert sorted(found) == [row["step"] for row in expected]
    for row in expected:
        logged = found[row.pop("step")]
        assert logged["images_per_second"] > 0
        assert {name: logged[name] for name in row} == row
