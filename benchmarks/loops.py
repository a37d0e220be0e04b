"""The loops that are compared within one process, each on a base model of its own."""

import torch

from benchmarks.workload import LEARNING_RATE, SEED, Workload
from tests.unit.training.reference_loop import (
    reference_scheduler,
    reference_step,
    reference_unet,
)
from worker.training.adapter import add_adapter
from worker.training.base_model import load_base_model
from worker.training.cache import encode
from worker.training.device import arithmetic_for
from worker.training.images import read_pictures
from worker.training.loop import Lesson, Trainee, optimizer_step
from worker.training.optimizer import new_accelerator, new_optimizer, new_schedule
from worker.training.plan import make_plan
from worker.training.sampler import Sample, draw

_CPU = torch.device("cpu")


class PeerLoop:
    """diffusers' loop: every picture and caption encoded at every step, PEFT, AdamW, fp32.

    With `checkpointing` it is the loop of a naive worker, which recomputes activations as well.
    """

    def __init__(self, workload: Workload, *, checkpointing: bool = False) -> None:
        order = workload.command(workload.folder / "peer")
        location = order.base_model.location
        self._model = load_base_model(order.base_model, arithmetic_for("no", _CPU), allow_hub=False)
        self._pictures, _ = read_pictures(order.images, workload.resolution, "fail")
        start = add_adapter(self._model.unet, order.parameters, SEED).weights
        self.unet, weights = reference_unet(location, order.parameters, start)
        del self._model.unet
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self._optimizer = torch.optim.AdamW(weights.values(), lr=LEARNING_RATE)
        self._schedule = torch.optim.lr_scheduler.ConstantLR(self._optimizer, factor=1)
        self._ddpm = reference_scheduler(location)
        self._step = 0

    def step(self) -> None:
        """One optimizer step; its loss is read, as the script does for its progress bar."""
        picture = self._pictures[self._step % len(self._pictures)]
        side = picture.pixels.shape[-1] // 8
        numbers = draw(
            Sample(self._step, 0, 0),
            seed=SEED,
            latent_shape=torch.Size((4, side, side)),
            timesteps=len(self._ddpm.alphas_cumprod),
            flip=False,
            caption_dropout_rate=0,
        )
        reference_step(
            self._model,
            self.unet,
            picture.pixels[None],
            [picture.file.caption],
            [numbers],
            self._optimizer,
            self._schedule,
            self._ddpm,
        ).item()
        self._step += 1


class OurLoop:
    """The trainer's own loop."""

    def __init__(self, workload: Workload) -> None:
        order = workload.command(workload.folder / "ours")
        rules = order.parameters
        model = load_base_model(order.base_model, arithmetic_for("no", _CPU), allow_hub=False)
        pictures, _ = read_pictures(order.images, workload.resolution, "fail")
        plan = make_plan(rules, len(pictures), free_bytes=0)
        self._lesson = Lesson(
            dataset=encode(model, pictures, mirrored=False),
            schedule=model.schedule,
            prediction_type=model.prediction_type,
            parameters=rules,
            plan=plan,
            seed=SEED,
        )
        accelerator = new_accelerator(model.arithmetic)
        adapter = add_adapter(model.unet, rules, SEED)
        optimizer = new_optimizer(accelerator, adapter, rules)
        self._trainee = Trainee(
            unet=model.unet.train(),
            adapter=adapter,
            accelerator=accelerator,
            optimizer=optimizer,
            schedule=new_schedule(optimizer, rules, plan.total_steps),
            losses=torch.full((plan.total_steps,), torch.nan),
        )

    def step(self) -> None:
        """One optimizer step; its loss stays where it is, as between two reports."""
        optimizer_step(self._trainee, self._lesson)
