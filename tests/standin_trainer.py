"""A stand-in for the trainer: the real protocol over the real pipe, without torch.

It reads its orders from the style id of the job, so that a test can say what shall go wrong:
`style_id` 900… are the odd ones below; every other style trains. Its arguments are the time that a
step takes, in seconds, and the steps between two checkpoints, where the job's seconds are too long.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from worker.contract.errors import ErrorCode
from worker.contract.pipe import (
    EXIT_CHECKPOINTED,
    CheckpointEvent,
    FailedEvent,
    FinishedEvent,
    LogEvent,
    OutputFile,
    ReadyEvent,
    StageEvent,
    StepEvent,
    StopCommand,
    StoppedEvent,
    TrainCommand,
    parse_command,
)

CRASHES, CRASHES_ONCE, SEGFAULTS, OUT_OF_MEMORY, NOISY, HANGS, HANGS_LATER = range(900, 907)
DIVERGES = 907

AS_PROGRAM = sys.argv[0].endswith("trainer.py")
STEP_SECONDS = float(sys.argv[1]) if AS_PROGRAM and len(sys.argv) > 1 else 0.01
CHECKPOINT_STEPS = int(sys.argv[2]) if AS_PROGRAM and len(sys.argv) > 2 else None
current_job = ""
stop: list[str] = []
orders: list[TrainCommand] = []
arrived = threading.Condition()


def say(event) -> None:
    sys.stdout.buffer.write(event.line())
    sys.stdout.buffer.flush()


def listen() -> None:
    for line in sys.stdin.buffer:
        command = parse_command(line)
        with arrived:
            if isinstance(command, StopCommand):
                stop.append(command.reason)
            else:
                orders.append(command)
            arrived.notify_all()
    os._exit(0)


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


def train(command: TrainCommand) -> None:
    steps = command.parameters.max_train_steps or command.parameters.num_train_epochs
    done = 0
    if command.resume_from:
        done = json.loads(Path(command.resume_from).read_text())["step"]
    say(StageEvent(stage="training", status="started"))
    misbehave(command)
    if command.style_id == OUT_OF_MEMORY:
        say(FailedEvent(code=ErrorCode.GPU_OUT_OF_MEMORY, message="It needs 9 GiB and has 8."))
        return
    if command.style_id == DIVERGES:
        said = "The loss was not a finite number at step 1; send a lower parameters.learning_rate."
        say(FailedEvent(code=ErrorCode.NON_FINITE_LOSS, message=said))
        return
    began = time.monotonic()
    while done < steps:
        if stop:
            reason = stop.pop()
            path = checkpoint(command, done) if reason == "drain" else None
            say(StoppedEvent(reason=reason, step=done, checkpoint=path))
            if reason == "drain":
                sys.exit(EXIT_CHECKPOINTED)
            return
        time.sleep(3600 if command.style_id == HANGS_LATER and done == 3 else STEP_SECONDS)
        done += 1
        say(
            StepEvent(
                step=done,
                total_steps=steps,
                epoch=1,
                total_epochs=1,
                loss=1.0 / done,
                learning_rate=1e-4,
                step_seconds=STEP_SECONDS,
                estimated_seconds=(steps - done) * STEP_SECONDS,
            )
        )
        if CHECKPOINT_STEPS and done % CHECKPOINT_STEPS == 0:
            checkpoint(command, done)
        elif time.monotonic() - began > command.parameters.checkpoint_seconds:
            began = time.monotonic()
            checkpoint(command, done)
    say(StageEvent(stage="training", status="ended", seconds=1.0))
    body = json.dumps({"job_id": command.job_id, "seed": command.seed, "steps": steps}).encode()
    path = Path(command.output_dir) / "lora_weights.safetensors"
    path.write_bytes(body)
    say(
        FinishedEvent(
            files=[
                OutputFile(
                    name=path.name,
                    path=str(path),
                    bytes=len(body),
                    sha256=hashlib.sha256(body).hexdigest(),
                )
            ],
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
    )


def checkpoint(command: TrainCommand, step: int) -> str:
    path = Path(command.checkpoint_dir) / f"{step}.safetensors"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"step": step}))
    temporary.rename(path)
    say(CheckpointEvent(step=step, path=str(path)))
    return str(path)


def main() -> None:
    global current_job
    threading.Thread(target=listen, daemon=True).start()
    say(
        ReadyEvent(
            pid=os.getpid(),
            device="cpu",
            device_name="stand-in",
            device_memory_bytes=0,
            versions={},
        )
    )
    while True:
        with arrived:
            arrived.wait_for(lambda: orders)
            command = orders.pop()
        current_job = command.job_id
        train(command)


if __name__ == "__main__":
    main()
