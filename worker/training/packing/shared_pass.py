"""One forward and one backward pass for the micro-batches of several jobs."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from worker.training.adapter_weights import ADAPTER
from worker.training.base_model import unet_of_same_weights
from worker.training.conditioning import Conditions
from worker.training.low_rank import LowRankArithmetic
from worker.training.packing.arithmetic import PackedArithmetic
from worker.training.repeatable import passed
from worker.training.step import Work, answer, task_of


def likeness(work: Work) -> Hashable:
    """What micro-batches must have in common to go through the UNet together.

    The base model and the layers with an adapter are the same for all who are asked. None: it goes
    alone.
    """
    if not isinstance(work.trainee.adapter, LowRankArithmetic):
        return None
    latents = (len(work.batch.timesteps), *work.batch.shape)
    return latents, work.lesson.plan.gradient_checkpointing


class SharedPass:
    """A UNet on the jobs' common base, with the adapters of all of them."""

    def __init__(self, like: UNet2DConditionModel, target_modules: Sequence[str]) -> None:
        """Put adapters beside the layers that `target_modules` names.

        Args:
            like: any job's UNet; the weights of its base are shared, its adapter is left alone.
            target_modules: of all jobs.
        """
        self._unet = unet_of_same_weights(like)
        # It says which layers; its own weights are never looked at.
        self._unet.add_adapter(
            LoraConfig(r=1, target_modules=list(target_modules)), adapter_name=ADAPTER
        )
        self._unet.requires_grad_(requires_grad=False).train()
        self._arithmetic = PackedArithmetic(self._unet)
        self._recomputes = False

    def __call__(self, works: Sequence[Work]) -> list[torch.Tensor]:
        """Pass micro-batches that are alike; returns what `pass_alone` would for each.

        The gradients are added to those of the jobs' buffers when all of it has gone well.

        Raises:
            torch.OutOfMemoryError: no job's state has changed.
        """
        return passed(lambda: self._pass(works), *(work.trainee.strictness for work in works))

    def _pass(self, works: Sequence[Work]) -> list[torch.Tensor]:
        jobs: list[Any] = [work.trainee.adapter for work in works]
        self._arithmetic.take(jobs, [work.dropout_seed for work in works])
        try:
            parts = self._parts(works)
            scalers = [work.trainee.accelerator.scaler for work in works]
            scaled = [
                part if scaler is None else scaler.scale(part)
                for part, scaler in zip(parts, scalers, strict=True)
            ]
            # A sum's gradient is 1 for each, whatever the others are: NaN goes nowhere.
            # One who would have it strictly has the say, and is told if it cannot be had.
            asked = [work.trainee.strictness for work in works]
            with min(asked, key=lambda one: bool(one.given_up_because)).backward():
                torch.autograd.backward(torch.stack(scaled).sum())
            self._arithmetic.give_back()
        finally:
            self._arithmetic.let_go()
        return [part.detach() for part in parts]

    def close(self) -> None:
        """Let go of the UNet."""
        self._arithmetic.remove()

    def _parts(self, works: Sequence[Work]) -> list[torch.Tensor]:
        """Each job's part of its loss, as in `run_pass`."""
        self._recompute(works[0].lesson.plan.gradient_checkpointing)
        tasks = [task_of(work.lesson, work.batch) for work in works]
        said = answer(
            self._unet,
            works[0].trainee.accelerator,
            torch.cat([task.noisy for task in tasks]),
            torch.cat([task.told for task in tasks]),
            Conditions.joined([task.conditions for task in tasks]),
        )
        size = len(tasks[0].told)
        return [
            task.losses(prediction).sum() * work.share
            for prediction, task, work in zip(torch.split(said, size), tasks, works, strict=True)
        ]

    def _recompute(self, wanted: bool) -> None:
        if wanted and not self._recomputes:
            self._unet.enable_gradient_checkpointing()
        elif self._recomputes and not wanted:
            self._unet.disable_gradient_checkpointing()
        self._recomputes = wanted
