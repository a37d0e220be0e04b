"""Strangers' pictures are decoded in a process of their own: their harm is theirs alone."""

import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.fixtures.bad_pictures import gif_of_comments, jpeg_of_scans, png_of_chunks
from worker.contract.errors import ErrorCode, JobError
from worker.contract.pipe import ImageFile
from worker.training import decoder_process
from worker.training.decoder_process import DecoderProcess
from worker.training.decoding import BadFile, decode_file
from worker.training.framing import Framing, square
from worker.training.images import Pictures
from worker.training.jpeg_scans import MAX_SCANS, count_scans

SIZE = square(64)
MIDDLE = (0.5,)


def picture(folder: Path, name="good.png", size=(300, 200), **options) -> str:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.save(folder / name, **options)
    return str(folder / name)


def written(folder: Path, body: bytes) -> str:
    (folder / "bad").write_bytes(body)
    return str(folder / "bad")


def program(*lines: str) -> tuple[str, ...]:
    """The decoder, with something about it changed first."""
    text = ("import os, signal, sys, time", "from worker.training import decoder as it", *lines)
    return (sys.executable, "-c", "\n".join((*text, "it.main()")))


@pytest.fixture(scope="module")
def decoder():
    with DecoderProcess() as started:
        yield started


@pytest.mark.parametrize(
    ("name", "options", "framing", "places"),
    [
        ("a.png", {}, SIZE, MIDDLE),
        ("a.jpg", {"quality": 95, "progressive": True}, SIZE, MIDDLE),
        ("a.webp", {}, SIZE, MIDDLE),
        ("a.gif", {}, SIZE, MIDDLE),
        ("a.tif", {}, SIZE, MIDDLE),
        ("a.bmp", {}, SIZE, MIDDLE),
        ("a.png", {}, Framing(((64, 64), (80, 48)), crops=4), (0.1, 0.3, 0.6, 0.9)),
    ],
)
def test_the_pixels_are_those_that_decoding_here_gives(
    tmp_path, decoder, name, options, framing, places
):
    path = picture(tmp_path, name, **options)
    there, here = decoder.decode(path, framing, places), decode_file(path, framing, places)
    assert [one.tobytes() for one in (*there.parts, there.whole)] == [
        one.tobytes() for one in (*here.parts, here.whole)
    ]
    for name in ("format", "cuts", "width", "height", "changes"):
        assert getattr(there, name) == getattr(here, name)


def refused(decoder: DecoderProcess, path: str) -> str:
    with pytest.raises(BadFile) as caught:
        decoder.decode(path, SIZE, MIDDLE)
    return str(caught.value)


def test_a_jpeg_that_is_painted_over_without_end_is_refused_before_it_is_decoded(tmp_path, decoder):
    bomb = jpeg_of_scans(7_990, 10_000)
    assert len(bomb) < 1_200_000
    began = time.monotonic()
    assert "it is a JPEG of 101 scans; 100 are the most" in refused(
        decoder, written(tmp_path, bomb)
    )
    assert time.monotonic() - began < 5
    legal = written(tmp_path, jpeg_of_scans(512, MAX_SCANS))
    assert decoder.decode(legal, SIZE, MIDDLE).width == 512


def test_scans_are_those_of_the_picture_and_not_of_what_a_phone_puts_behind_it(tmp_path):
    path = Path(picture(tmp_path, "a.jpg", progressive=True))
    scans = count_scans(str(path))
    assert 5 <= scans <= 12
    with path.open("ab") as file:
        file.write(b"\xff\xda\x00\x02" * 500)
    assert count_scans(str(path)) == scans
    thumbnail = BytesIO()
    Image.new("RGB", (16, 16)).save(thumbnail, "JPEG")
    image = Image.open(path)
    exif = image.getexif()
    exif[0x927C] = thumbnail.getvalue() * 20
    image.save(tmp_path / "b.jpg", exif=exif)
    assert count_scans(str(tmp_path / "b.jpg")) == 1


def test_a_picture_that_takes_too_long_ends_and_the_next_one_is_decoded(tmp_path):
    with DecoderProcess(program("it.CPU_SECONDS = 0.5")) as quick:
        began = time.monotonic()
        assert "takes more than 4.5 seconds" in refused(
            quick, written(tmp_path, png_of_chunks(1_000_000))
        )
        assert time.monotonic() - began < 60
        assert quick.decode(picture(tmp_path), SIZE, MIDDLE).width == 300


def test_a_picture_that_takes_too_much_memory_is_refused(tmp_path):
    small = program("it.MEMORY_BYTES = 64 * 1024 * 1024")
    with DecoderProcess(small) as decoder:
        assert "too much memory" in refused(decoder, written(tmp_path, gif_of_comments(1_500_000)))
        assert decoder.decode(picture(tmp_path), SIZE, MIDDLE).width == 300


def striking(action: str) -> tuple[str, ...]:
    """A decoder in which the file `bad` does something that no picture should."""
    return program(
        "original = it.decode_file",
        "def decode(path, *others):",
        "    if path.endswith('bad'):",
        f"        {action}",
        "    return original(path, *others)",
        "it.decode_file = decode",
    )


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal SIGSEGV"),
        ("os.abort()", "ended with signal SIGABRT"),
        ("os._exit(3)", "ended with status 3"),
        ("raise RuntimeError", "ended with status 1"),
        # A process that was taken over answers what it likes.
        ("os.write(3, b'nonsense' + bytes([10])); time.sleep(60)", "gave no answer"),
        ("os.write(3, b'x' * 1_000_000); time.sleep(60)", "gave no answer"),
        (
            'os.write(3, b\'{"format":"PNG","width":64,"height":64,"changes":[],"cuts":[[0,0,0,'
            '[64,64]]],"parts":[[60000,60000]],"whole":[64,64]}\' + bytes([10])); time.sleep(60)',
            "gave no answer",
        ),
    ],
)
def test_a_picture_that_takes_the_process_over_or_ends_it_is_bad_and_the_next_is_decoded(
    tmp_path, action, says
):
    with DecoderProcess(striking(action)) as decoder:
        assert says in refused(decoder, written(tmp_path, b"?"))
        assert decoder.decode(picture(tmp_path), SIZE, MIDDLE).width == 300


def test_a_picture_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_process, "PICTURE_SECONDS", 0.5)
    with DecoderProcess(striking("time.sleep(60)")) as decoder:
        assert "not decoded within 0.5 seconds" in refused(decoder, written(tmp_path, b"?"))


def test_what_is_not_the_pictures_doing_is_tried_again(tmp_path):
    path = written(tmp_path, b"?")
    killed = DecoderProcess(striking("os.kill(os.getpid(), signal.SIGKILL)"))
    absent = DecoderProcess((sys.executable, "-c", "raise SystemExit(1)"))
    for decoder in (killed, absent):
        with decoder, pytest.raises(JobError) as caught:
            decoder.decode(path, SIZE, MIDDLE)
        assert (caught.value.code, caught.value.transient) == (ErrorCode.TRAINING_FAILED, True)


def test_the_process_can_write_no_file_and_gain_no_rights(tmp_path):
    target = tmp_path / "written"
    confined = (
        "import resource, sys\n"
        "from worker.training import decoder as it\n"
        "it.confine()\n"
        "print(open('/proc/self/status').read())\n"
        "print(*map(resource.getrlimit, (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC)))\n"
        f"open({str(target)!r}, 'w').write('x' * 10)\n"
    )
    answer = subprocess.run([sys.executable, "-c", confined], capture_output=True, text=True)
    assert target.read_bytes() == b""
    assert "NoNewPrivs:\t1" in answer.stdout
    assert "(0, 0) (0, 0)" in answer.stdout


def test_the_process_ends_with_its_trainer(tmp_path):
    trainer = (
        "import time\n"
        "from worker.training.decoder_process import DecoderProcess\n"
        "with DecoderProcess() as it:\n"
        "    print(it.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        started.kill()
    deadline = time.monotonic() + 30
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_each_job_has_a_process_of_its_own_and_leaves_none(tmp_path, mocker):
    started = mocker.spy(subprocess, "Popen")
    file = ImageFile(index=0, path=picture(tmp_path), source="s3://b/a.png")
    for _ in range(2):
        assert len(list(Pictures([file, file], 64, "skip"))) == 2
    assert started.call_count == 2
    assert all(one.returncode is not None for one in started.spy_return_list)


def test_no_file_of_the_process_stays_open(tmp_path):
    path = picture(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with DecoderProcess() as decoder:
            decoder.decode(path, SIZE, MIDDLE)
    assert len(os.listdir("/proc/self/fd")) == before
