"""Make events.tfevents with TensorBoard's own classes, and read it back with its own reader.

    uv venv -p 3.11 venv && uv pip install --python venv/bin/python tensorboard==2.21.0 protobuf==7.36.2
    venv/bin/python tensorboard_events.py

It stands apart from make_golden.py, whose goldens name all the packages that they were made with. The file is what a run
writes that continues from step 400; `stages/src/train/tensorboard.rs` must write the same bytes.
"""

import importlib.metadata
import math
import pathlib
import shutil
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

PATH = pathlib.Path(__file__).resolve().parent / "events.tfevents"
LINES = [
    (420, 1_700_000_001.5, {"loss/velocity": 0.625, "train/lr": 1e-4}),
    (70_000, 1_700_000_002.0, {"loss/velocity": math.nan, "train/lr": 0.0}),
]


def events():
    begun = 1_700_000_000.25
    yield Event(wall_time=begun, file_version="brain.Event:2")
    yield Event(wall_time=begun, step=401, session_log=SessionLog(status=SessionLog.START))
    for step, wall_time, scalars in LINES:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        yield Event(wall_time=wall_time, step=step, summary=Summary(value=values))
    image = Summary.Image(height=2, width=300, colorspace=3, encoded_image_string=b"no PNG")
    value = [Summary.Value(tag="samples", image=image)]
    yield Event(wall_time=1_700_000_003.0, step=70_000, summary=Summary(value=value))


def main():
    for package, version in {"tensorboard": "2.21.0", "protobuf": "7.36.2"}.items():
        found = importlib.metadata.version(package)
        assert found == version, f"{package} {found} is installed; this script is for {version}"
    with open(PATH, "wb") as file:
        writer = RecordWriter(file)
        for event in events():
            writer.write(event.SerializeToString(deterministic=True))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PATH, pathlib.Path(folder) / "events.out.tfevents.0000000400.dualpath")
        read = EventAccumulator(folder).Reload()
        rate = [(scalar.step, scalar.wall_time, scalar.value) for scalar in read.Scalars("train/lr")]
        assert [(step, wall) for step, wall, _ in rate] == [(step, wall) for step, wall, _ in LINES], rate
        image = read.Images("samples")[0]
        assert (image.step, image.width, image.height, image.encoded_image_string) == (70_000, 300, 2, b"no PNG"), image
        assert abs(rate[0][2] - 1e-4) < 1e-11 and math.isnan(read.Scalars("loss/velocity")[1].value)
    print(f"{PATH.name} {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
