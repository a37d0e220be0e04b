"""What does a receiver hear of one attempt? Its progress, for as long as the job is ours."""

from collections.abc import Callable

import structlog

from worker.contract.events import ProgressBody
from worker.contract.pipe import StageEvent, StepEvent
from worker.jobs.intake import Order
from worker.jobs.lease_keeper import LeaseKeeper
from worker.jobs.progress import ProgressReporter
from worker.jobs.record import Lease, Result

log = structlog.get_logger()

#: Sends a report with its sequence number to a base, if at the last moment the job is still ours;
#: False if the receiver said 410 Gone.
SendReport = Callable[[str, ProgressBody, int, Callable[[], bool]], bool]

#: How long the end of an attempt waits for a report on its way, seconds; more than the usual
#: time-out of one. The next job trains meanwhile.
_LAST_REPORT_SECONDS = 20.0


class Reports:
    """The reports of one attempt; none of a job that nobody hears of."""

    def __init__(
        self,
        order: Order,
        lease: Lease,
        keeper: LeaseKeeper,
        send: SendReport,
        interval_seconds: float,
    ) -> None:
        """Begin with a first report of what a receiver may have seen before."""
        self._order, self._keeper, self._send = order, keeper, send
        self._progress = None
        if order.base is not None:
            self._progress = ProgressReporter(
                self._report,
                job_id=order.job.job_id,
                style_id=order.job.style_id,
                epoch=lease.epoch,
                floor_percent=lease.percent,
                interval_seconds=interval_seconds,
            )

    def on_event(self, event: StageEvent | StepEvent) -> None:
        """The training went on."""
        if self._progress is None:
            return
        if isinstance(event, StageEvent):
            self._progress.on_stage(event)
        else:
            self._progress.on_step(event)

    def end(self) -> bool:
        """No further report; whether none is on its way either."""
        return self._progress is None or self._progress.close(_LAST_REPORT_SECONDS)

    def last(self, result: Result) -> tuple[ProgressBody, int] | None:
        """The report at 100 % of a completed job that somebody hears of."""
        if self._progress is None or result.outcome != "completed":
            return None
        return self._progress.final_body()

    def _report(self, body: ProgressBody, sequence: int) -> None:
        base = self._order.base
        assert base is not None  # noqa: S101 - else nobody reports
        if not self._keeper.may_report(body.progress.progress_percent):
            return
        if not self._send(base, body, sequence, self._keeper.is_fresh):
            log.info("job_canceled_by_receiver")
            self._keeper.canceled.set()
            self._order.record.request_cancel()
