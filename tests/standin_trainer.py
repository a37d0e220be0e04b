"""A stand-in for the trainer: the real protocol over the real pipe, without torch.

It reads its orders from the style id of the job, so that a test can say what shall go wrong:
`style_id` 900… are the odd ones below; every other style trains. Its arguments are the time that a
step takes, in seconds, and the steps between two checkpoints, where the job's seconds are too long;
and those that the worker adds for a trainer of several jobs, each of which it trains on a thread.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from worker.contract.errors import ErrorCode
from worker.contract.packing import company
from worker.contract.pipe import (
    EXIT_CHECKPOINTED,
    CheckpointEvent,
    Event,
    FailedEvent,
    FinishedEvent,
    LogEvent,
    OutputFile,
    ReadyEvent,
    StageEvent,
    StepEvent,
    StoppedEvent,
    TrainCommand,
    parse_command,
)

CRASHES, CRASHES_ONCE, SEGFAULTS, OUT_OF_MEMORY, NOISY, HANGS, HANGS_LATER = range(900, 907)
DIVERGES = 907

#: Exit status where the supervisor gave it a job beside one that it may not share with.
NOT_ALLOWED = 4

AS_PROGRAM = sys.argv[0].endswith("trainer.py")
_parser = argparse.ArgumentParser()
_parser.add_argument("step_seconds", nargs="?", type=float, default=0.01)
_parser.add_argument("checkpoint_steps", nargs="?", type=int, default=0)
_parser.add_argument("--slots", type=int, default=1)
_parser.add_argument("--pack-wait-seconds", type=float, default=0)
ASKED, _ = _parser.parse_known_args(None if AS_PROGRAM else [])

#: What each job was told, if it was told to stop.
told: dict[str, str] = {}
running: dict[str, TrainCommand] = {}
changing, speaking = threading.Lock(), threading.Lock()
terminated = threading.Event()


def say(event) -> None:
    with speaking:
        sys.stdout.buffer.write(event.line())
        sys.stdout.buffer.flush()


def listen() -> None:
    for line in sys.stdin.buffer:
        command = parse_command(line)
        with changing:
            if isinstance(command, TrainCommand):
                begin(command)
            else:
                stopped = [command.job_id] if command.job_id else list(running)
                told.update(dict.fromkeys(stopped, command.reason))
    os._exit(0)


def begin(command: TrainCommand) -> None:
    """Train it beside the others. A supervisor that gives what it may not is the trainer's end."""
    everybody = [*running.values(), command]
    companies = {company(one.parameters, one.base_model) for one in everybody}
    alone = any(one.alone for one in everybody) or companies & {None} or len(companies) > 1
    if len(everybody) > (1 if alone else ASKED.slots) or command.job_id in running:
        print(f"{command.job_id} may not begin beside {list(running)}", file=sys.stderr, flush=True)
        os._exit(NOT_ALLOWED)
    running[command.job_id] = command
    threading.Thread(target=serve, args=[command], daemon=True).start()


def serve(command: TrainCommand) -> None:
    try:
        ended = train(command)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    with changing:
        # Before the word is out: whoever hears it may send the next job at once.
        del running[command.job_id]
        told.pop(command.job_id, None)
        last = not running
    say(ended)
    drained = isinstance(ended, StoppedEvent) and ended.reason == "drain"
    if last and (terminated.is_set() or (drained and ASKED.slots == 1)):
        os._exit(EXIT_CHECKPOINTED)


def terminate(_number: int, _frame: object) -> None:
    terminated.set()
    told.update(dict.fromkeys(list(running), "drain"))
    if not running:
        os._exit(EXIT_CHECKPOINTED)


def misbehave(command: TrainCommand) -> None:
    match command.style_id:
        case 900:
            os._exit(3)
        case 901:
            marker = Path(os.environ["HOME"]) / f"crashed-{command.job_id}"
            if not marker.exists():
                marker.touch()
                os._exit(3)
        case 902:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 904:
            print("Loading weights: 100%", flush=True)
            print("a warning of some library", file=sys.stderr, flush=True)
            say(LogEvent(event="standin_speaks", fields={"token": "none"}))
        case 905:
            time.sleep(3600)


def wait_for_company(command: TrainCommand) -> None:
    until = time.monotonic() + (0 if command.alone else ASKED.pack_wait_seconds)
    while len(running) < 2 and command.job_id not in told and time.monotonic() < until:
        time.sleep(0.02)


def train(command: TrainCommand) -> Event:
    """Make its steps; how it ended, to be said."""
    job_id = command.job_id
    steps = command.parameters.max_train_steps or command.parameters.num_train_epochs
    done = 0
    if command.resume_from:
        done = json.loads(Path(command.resume_from).read_text())["step"]
    say(StageEvent(job_id=job_id, stage="training", status="started"))
    wait_for_company(command)
    misbehave(command)
    if command.style_id == OUT_OF_MEMORY:
        said = "It needs 9 GiB and has 8."
        return FailedEvent(job_id=job_id, code=ErrorCode.GPU_OUT_OF_MEMORY, message=said)
    if command.style_id == DIVERGES:
        said = "The loss was not a finite number at step 1; send a lower parameters.learning_rate."
        return FailedEvent(job_id=job_id, code=ErrorCode.NON_FINITE_LOSS, message=said)
    began = time.monotonic()
    while done < steps:
        if reason := told.get(job_id):
            path = checkpoint(command, done) if reason == "drain" else None
            return StoppedEvent(job_id=job_id, reason=reason, step=done, checkpoint=path)
        hangs = command.style_id == HANGS_LATER and done == 3
        time.sleep(3600 if hangs else ASKED.step_seconds)
        done += 1
        say(
            StepEvent(
                job_id=job_id,
                step=done,
                total_steps=steps,
                epoch=1,
                total_epochs=1,
                loss=1.0 / done,
                learning_rate=1e-4,
                step_seconds=ASKED.step_seconds,
                estimated_seconds=(steps - done) * ASKED.step_seconds,
            )
        )
        if ASKED.checkpoint_steps and done % ASKED.checkpoint_steps == 0:
            checkpoint(command, done)
        elif time.monotonic() - began > command.parameters.checkpoint_seconds:
            began = time.monotonic()
            checkpoint(command, done)
    say(StageEvent(job_id=job_id, stage="training", status="ended", seconds=1.0))
    body = json.dumps({"job_id": job_id, "seed": command.seed, "steps": steps}).encode()
    path = Path(command.output_dir) / "lora_weights.safetensors"
    path.write_bytes(body)
    file = OutputFile(
        name=path.name,
        path=str(path),
        bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
    )
    return FinishedEvent(
        job_id=job_id,
        files=[file],
        steps=steps,
        epochs=command.parameters.num_train_epochs,
        loss=1.0 / steps,
        metadata={
            "lora_rank": command.parameters.rank,
            "lora_alpha": command.parameters.lora_alpha,
            "training_epochs": command.parameters.num_train_epochs,
            "environment": sorted(os.environ),
            "captions": [image.caption for image in command.images],
            "image_files": [Path(image.path).name for image in command.images],
        },
    )


def checkpoint(command: TrainCommand, step: int) -> str:
    path = Path(command.checkpoint_dir) / f"{step}.safetensors"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"step": step}))
    temporary.rename(path)
    say(CheckpointEvent(job_id=command.job_id, step=step, path=str(path)))
    return str(path)


def main() -> None:
    signal.signal(signal.SIGTERM, terminate)
    threading.Thread(target=listen, daemon=True).start()
    say(
        ReadyEvent(
            pid=os.getpid(),
            device="cpu",
            device_name="stand-in",
            device_memory_bytes=0,
            versions={},
            slots=ASKED.slots,
        )
    )
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
