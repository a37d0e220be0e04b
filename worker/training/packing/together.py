"""What the jobs of one trainer share: the base model, the passes, and who computes when.

Each has a UNet of its own on the base's very weights, with its own adapter: what it does besides
its passes (looks at the loss, previews, exports) is what it would do alone.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel

from worker.contract.base_model import BaseModelEntry
from worker.contract.errors import ErrorCode, JobError
from worker.contract.packing import company
from worker.contract.pipe import TrainCommand
from worker.training.adapter import remove_adapter, remove_text_adapter
from worker.training.base_model import BaseModelShelf, LoadedBaseModel, Shelf, unet_of_same_weights
from worker.training.baton import Baton, breathe
from worker.training.device import Arithmetic, forget_peak, free_memory_bytes, this_device
from worker.training.packing.pack import Pack
from worker.training.packing.packed_seat import Needs
from worker.training.packing.shared_pass import SharedPass
from worker.training.packing.turns import Turns
from worker.training.seat import Seat, ShouldStop, StageReport
from worker.training.step import Lesson, Work


class Together:
    """The room in which the jobs of one trainer run, each in a thread of its own."""

    def __init__(self, shelf: BaseModelShelf, *, slots: int, wait_seconds: float = 0.0) -> None:
        """Make room for `slots` jobs on the models of `shelf`; see `Pack` for the rest."""
        self.baton = Baton()
        self.pack = Pack(self.baton, self._pass, slots=slots, wait_seconds=wait_seconds)
        self._turns = Turns(self.baton)
        self._shelf = shelf
        self._model: LoadedBaseModel | None = None
        self._trees: list[UNet2DConditionModel] = []
        self._shared: tuple[frozenset[str], SharedPass] | None = None

    @contextmanager
    def job(
        self, command: TrainCommand, report: StageReport, should_stop: ShouldStop
    ) -> Iterator[Shelf]:
        """A job's turn to be here; where it takes its base model from.

        Raises:
            JobError: as the job itself, but that memory which neighbours have may be free later.
        """
        whose = _company_of(command)
        with self.baton.held(), self._turns.turn(whose, report, should_stop) as alone:
            if alone:
                forget_peak(this_device())
            try:
                yield _OwnTree(self)
            except JobError as error:
                if whose is None or error.code is not ErrorCode.GPU_OUT_OF_MEMORY:
                    raise
                raise JobError(error.code, error.message, transient=True) from error

    @contextmanager
    def seated(
        self,
        command: TrainCommand,
        model: LoadedBaseModel,
        lesson: Lesson,
        report: StageReport,
        should_stop: ShouldStop,
    ) -> Iterator[Seat]:
        """The place of a job among those that train; see `Pack.seat`."""
        needs, sociable = _needs(command, model, lesson), _company_of(command) is not None
        with self.pack.seat(needs, report, should_stop, sociable=sociable) as seat:
            yield seat

    def take_tree(self, entry: BaseModelEntry, arithmetic: Arithmetic) -> LoadedBaseModel:
        """The base model with a UNet that nobody else uses."""
        kept = self._model
        if kept is not None and not kept.serves(entry, arithmetic):
            self._forget()  # before the shelf loads another
        model = self._shelf.get(entry, arithmetic)
        if model is not self._model:
            self._forget()
            self._model = model
        breathe()
        tree = self._trees.pop() if self._trees else unet_of_same_weights(model.unet)
        return replace(model, unet=tree)

    def give_tree(self, model: LoadedBaseModel) -> None:
        """Take a job's adapter off, and keep its UNet for the next one."""
        remove_adapter(model.unet)
        for encoder in model.text_encoders:
            remove_text_adapter(encoder.model)
        if self._model is not None and _same_weights(self._model.unet, model.unet):
            self._trees.append(model.unet)

    def _pass(self, works: Sequence[Work]) -> list[torch.Tensor]:
        targets = frozenset(works[0].lesson.parameters.target_modules)
        if self._shared is None or self._shared[0] != targets:
            self._close_shared()
            self._shared = targets, SharedPass(works[0].trainee.unet, sorted(targets))
        return self._shared[1](works)

    def _forget(self) -> None:
        """Let go of what lies on the weights of a base model."""
        self._close_shared()
        self._trees.clear()
        self._model = None

    def _close_shared(self) -> None:
        if self._shared is not None:
            self._shared[1].close()
            self._shared = None


class _OwnTree:
    """One job's shelf: the common base model, with a UNet of its own."""

    def __init__(self, together: Together) -> None:
        self._together = together
        self._model: LoadedBaseModel | None = None

    def get(self, entry: BaseModelEntry, arithmetic: Arithmetic) -> LoadedBaseModel:
        """The model, clean of any adapter. Raises `JobError` BASE_MODEL_UNAVAILABLE."""
        self._model = self._together.take_tree(entry, arithmetic)
        return self._model

    def tidy(self) -> None:
        """Take the job's adapter off."""
        if self._model is not None:
            self._together.give_tree(self._model)
            self._model = None


def _company_of(command: TrainCommand) -> Hashable | None:
    return None if command.alone else company(command.parameters, command.base_model)


def _same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two denoisers of one kind, without adapters, lie on the same weights."""
    return next(one.parameters()).data_ptr() == next(other.parameters()).data_ptr()


def _needs(command: TrainCommand, model: LoadedBaseModel, lesson: Lesson) -> Needs:
    plan, device = lesson.plan, model.arithmetic.device
    if not plan.free_bytes:
        return Needs()
    kept = model.family.memory.training_bytes(
        command.parameters, 0, checkpointing=plan.gradient_checkpointing
    )
    return Needs(
        kept=kept,
        a_pass=plan.estimated_bytes - kept,
        free=lambda: free_memory_bytes(device, command.trainers_per_gpu),
    )
