"""How far is a training on this machine? One line on the terminal with step, loss and time left."""

import signal
from types import FrameType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from worker.contract.pipe import StageEvent, StepEvent, StopCommand


class ProgressBar:
    """A progress bar that also turns Ctrl-C into a stop that leaves a checkpoint."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("starting", total=None, figures="")
        self._interrupted = False
        self._before: object = None

    def __enter__(self) -> "ProgressBar":
        self._before = signal.signal(signal.SIGINT, self._on_interrupt)
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def on_event(self, event: StageEvent | StepEvent) -> None:
        """Show a stage or a step."""
        if isinstance(event, StepEvent):
            self._progress.update(
                self._task,
                description="training",
                completed=event.step,
                total=event.total_steps,
                figures=f"loss {event.loss:.4f}  {event.estimated_seconds:.0f} s left",
            )
        elif event.status == "started":
            self._progress.update(self._task, description=event.stage)

    def should_stop(self) -> StopCommand | None:
        """A drain once Ctrl-C was pressed."""
        return StopCommand(reason="drain") if self._interrupted else None

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = True
