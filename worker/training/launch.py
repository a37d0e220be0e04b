"""How do steps reach the device? Recorded or compiled as planned, smaller where memory is short."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from worker.contract.pipe import LogEvent
from worker.training.batch import Batch
from worker.training.compiling import compile_blocks, forget_compiled_blocks
from worker.training.recording import RecordedPass
from worker.training.repeatable import passed
from worker.training.sampler import Sample
from worker.training.step import Lesson, Trainee, drawn, run_pass


def prepare_launch(trainee: Trainee, lesson: Lesson, report: Callable[[LogEvent], None]) -> None:
    """Compile or record as planned; where it cannot be done, one log line says so.

    What is tried here leaves no trace in the training: no step is made, and each pass of a step
    sets the random state itself.
    """
    plan, trainee.recorded = lesson.plan, None
    if not (plan.compiled or plan.recorded):
        return
    # Of a pass whose graph is kept the buffer remembers the stream, which is not a recording's.
    trainee.adapter.let_go()
    # Steps of other buckets than the fullest stay eager, and those of shorter batches.
    fullest = max(lesson.trained, key=len)
    pictures = itertools.islice(itertools.cycle(fullest), plan.micro_batch)
    samples = [Sample(0, place, picture) for place, picture in enumerate(pictures)]
    batch = drawn(lesson, samples).to(trainee.losses.device)
    share = 1 / plan.group_size

    def run(batch: Batch, share: torch.Tensor) -> torch.Tensor:
        return passed(lambda: run_pass(trainee, lesson, batch, share), trainee.strictness)

    too_large = None
    try:
        with trainee.ranks.together():
            if plan.compiled:
                compile_blocks(trainee.unet, lesson.compile_cache)
                run(batch, torch.full((), share, device=batch.indices.device))
            if plan.recorded:
                trainee.recorded = RecordedPass(run, batch, trainee.adapter.buffer, share)
    except torch.OutOfMemoryError as error:
        too_large = error.with_traceback(None)
    except Exception as error:
        # Compilers and drivers raise what they like; all of it means that steps stay eager.
        forget_compiled_blocks(trainee.unet)
        lesson.plan = replace(plan, compiled=False, recorded=False)
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        report(LogEvent(level="warning", event="steps_stay_eager", fields={"reason": reason}))
    trainee.adapter.buffer.grad = None
    if too_large is not None:
        retreat(trainee, lesson, report, too_large)


def retreat(
    trainee: Trainee,
    lesson: Lesson,
    report: Callable[[LogEvent], None],
    too_large: torch.OutOfMemoryError,
) -> None:
    """Go on with the next smaller plan; the step that did not fit is made anew.

    Raises:
        torch.OutOfMemoryError: `too_large`, where there is none.
    """
    smaller = lesson.plan.smaller()
    if smaller is None:
        raise too_large
    trainee.adapter.buffer.grad = None
    forget_passes(trainee)
    lesson.plan = smaller
    if smaller.gradient_checkpointing:
        trainee.unet.enable_gradient_checkpointing()
    report(LogEvent(level="warning", event="plan_made_smaller", fields=asdict(smaller)))
    prepare_launch(trainee, lesson, report)


def forget_passes(trainee: Trainee) -> None:
    """Free what the passes so far keep of the device: the recording's memory, the last graph."""
    trainee.recorded = None
    trainee.adapter.let_go()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
