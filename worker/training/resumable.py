"""A training that leaves checkpoints and goes on from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worker.contract.pipe import CheckpointEvent, Event, LogEvent, StoppedEvent, TrainCommand
from worker.training.adapter import add_adapters
from worker.training.base_model import LoadedBaseModel
from worker.training.checkpoint import (
    CheckpointUnusable,
    fingerprint,
    load_checkpoint,
    made_in,
    save_checkpoint,
)
from worker.training.environment import environment
from worker.training.evaluate import PASSES, base_loss, fixed_loss, looked_at
from worker.training.launch import forget_passes
from worker.training.library_optimizer import package_version
from worker.training.loop import Interlude, StopReason, train
from worker.training.optimizer import new_accelerator, new_optimizer, new_schedule
from worker.training.ranks import ALONE, Ranks
from worker.training.seat import Seat
from worker.training.step import Lesson, Trainee
from worker.training.validation import in_words, steps_between, thinned

#: What a checkpoint calls whom the last pass was shared with.
COMPANY = "company in a pass"

#: There is nothing to compare the company of the next pass with.
_NOT_ASKED = "not asked"


class Training:
    """One job's training: begun or gone on with, stopped or finished."""

    def __init__(
        self,
        command: TrainCommand,
        model: LoadedBaseModel,
        lesson: Lesson,
        report: Callable[[Event], None],
        ranks: Ranks = ALONE,
        seat: Seat | None = None,
    ) -> None:
        """Put a fresh adapter on the model, with its optimizer and schedule."""
        self._command, self._lesson, self._report = command, lesson, report
        self._inexactly: list[str] = []
        self._resumed = False
        rules, plan = command.parameters, lesson.plan
        if plan.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        accelerator = new_accelerator(model.arithmetic)
        text_encoder = model.text_encoders[0].model if rules.train_text_encoder else None
        adapter = add_adapters(model.unet, text_encoder, rules, command.seed)
        optimizer = new_optimizer(accelerator, adapter, rules)
        self.trainee = Trainee(
            unet=model.unet,
            adapter=adapter,
            accelerator=accelerator,
            optimizer=optimizer,
            schedule=new_schedule(optimizer, rules, plan.total_steps),
            text_encoder=text_encoder,
            losses=torch.full((plan.total_steps,), torch.nan, device=model.arithmetic.device),
            ranks=ranks,
            seat=seat,
        )
        self._seat = seat or Seat()
        self._belongs_to = fingerprint(
            rules,
            command.seed,
            lesson.sent,
            tuple(image.caption for image in (*command.images, *command.class_images)),
            command.base_model.name,
        )
        self._seat.belongs_to = self._belongs_to
        self._company_before: str | None = _NOT_ASKED
        self._made_in = environment(model.arithmetic.device) | package_version(rules.optimizer)
        self._planned_steps = plan.total_steps
        self._steps_between_looks = steps_between(rules, plan, PASSES)

    @property
    def _fits(self) -> dict[str, Any]:
        """What a checkpoint must fit: the job, and exactly, what rounding depends on."""
        plan = self._lesson.plan
        rounding = {"micro-batch": str(plan.micro_batch), "compiled": str(plan.compiled)}
        if self.trainee.ranks.count > 1:
            rounding["number of processes"] = str(self.trainee.ranks.count)
        asked = self._company_before is not _NOT_ASKED
        company = self._company_before if asked else self._seat.company
        if company is not None:
            rounding[COMPANY] = company
        return {"belongs_to": self._belongs_to, "made_in": self._made_in | rounding}

    def resume(self) -> dict[str, Any]:
        """Go on from the checkpoint that the command names, if it fits."""
        path = self._command.resume_from
        if path is None:
            return {"resumed": False, "resumed_exactly": True}
        try:
            # Whether the company is the same shows at the first pass.
            self._company_before = made_in(Path(path)).get(COMPANY)
            self._inexactly = load_checkpoint(self.trainee, Path(path), **self._fits)
        except CheckpointUnusable as error:
            self._company_before = _NOT_ASKED
            self._log("warning", "checkpoint_not_used", reason=str(error))
            return {"resumed": False, "resumed_exactly": True}
        self._resumed = True
        found = {"resumed": True, **self._exactness(), "resumed_at_step": self.trainee.step}
        self._log("info", "training_resumed", **found)
        return found

    def run(
        self,
        should_stop: Callable[[], StopReason | None],
        interlude: Interlude | None = None,
    ) -> StopReason | None:
        """Train to the end or until told to stop."""
        return train(
            self.trainee,
            self._lesson,
            report=self._report,
            should_stop=should_stop,
            checkpoint=self._checkpoint,
            after_step=self._after_step,
            interlude=interlude,
        )

    def conclude(self) -> dict[str, Any]:
        """Look a last time; what is said of a training that ran to its end, early or not."""
        trainee, lesson = self.trainee, self._lesson
        forget_passes(trainee)  # what is looked at and exported has other uses for the memory
        trainee.losses = trainee.losses[: trainee.step]
        trainee.rates = trainee.rates[: trainee.step]
        validation = trainee.validation
        if not validation.points or validation.points[-1][0] != trainee.step:
            self._look()
        validation.base = base_loss(trainee, lesson)
        best, last = validation.best or validation.points[-1], validation.points[-1]
        step, loss = best if validation.best_weights else last
        held_out = len(lesson.held_out)
        found = {
            "held_out_images": held_out,
            "curve": thinned(validation.curve),
            "best_step": best[0],
            "exported_step": step,
            "stopped_early": trainee.step < self._planned_steps,
            "planned_steps": self._planned_steps,
            "says": in_words(validation.curve, held_out=held_out, looked_at=len(looked_at(lesson))),
        }
        self._log("info", "training_validated", **found)
        return {
            "evaluation_loss_before": validation.base,
            "evaluation_loss_after": loss,
            "validation": found,
            **(self._exactness() if self._resumed else {}),
        }

    def _exactness(self) -> dict[str, Any]:
        """Whether the training went on exactly where it had been interrupted, and why not."""
        found: dict[str, Any] = {"resumed_exactly": not self._inexactly}
        if self._inexactly:
            found["resumed_inexactly_because"] = "; ".join(self._inexactly)
        return found

    def _after_step(self) -> None:
        if self._company_before is not _NOT_ASKED:
            self._compare_company(self._company_before)
            self._company_before = _NOT_ASKED
        self._say_what_does_not_repeat()
        self._look_if_due()

    def _compare_company(self, before: str | None) -> None:
        """Products of several jobs add up in another order than those of one, or of others."""
        now = self._seat.company
        if now != before:
            self._inexactly.append(f"{COMPANY}: {now or 'none'} here, {before or 'none'} before")
            self._log("info", "company_is_another", **self._exactness())

    def _say_what_does_not_repeat(self) -> None:
        """Once: a training that goes on from here, now or later, may end with other bits."""
        because = self.trainee.strictness.given_up_because
        if because and because not in self._inexactly:
            self._inexactly.append(because)
            self._log("warning", "gradients_do_not_repeat", reason=because)

    def _look_if_due(self) -> None:
        every = self._steps_between_looks
        if every is None or self.trainee.step % every:
            return
        self._look()
        patience = self._lesson.parameters.early_stopping_patience
        if self._lesson.held_out and self.trainee.validation.exhausted(patience):
            self._lesson.plan = self._lesson.plan.ended_at(self.trainee.step)

    def _look(self) -> None:
        trainee, lesson = self.trainee, self._lesson
        kept = trainee.weights if lesson.held_out else None
        trainee.validation.add(trainee.step, fixed_loss(trainee, lesson), kept)

    def stopped(self, reason: StopReason) -> StoppedEvent:
        """What is said of a job that was stopped; a drained one leaves a checkpoint."""
        leave = reason == "drain" and self.trainee.ranks.is_first
        path = self._checkpoint() if leave else None
        return StoppedEvent(
            reason=reason, step=self.trainee.step, checkpoint=str(path) if path else None
        )

    def _checkpoint(self) -> Path:
        with self._seat.away():
            path = save_checkpoint(
                self.trainee,
                Path(self._command.checkpoint_dir),
                **self._fits,
                inexactly=self._inexactly,
            )
        self._report(CheckpointEvent(step=self.trainee.step, path=str(path)))
        return path

    def _log(self, level: Any, event: str, **fields: Any) -> None:
        self._report(LogEvent(level=level, event=event, fields=fields))
