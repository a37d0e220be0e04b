"""Whole jobs and their parts on the small base model, on the CPU."""

from dataclasses import replace
from pathlib import Path

import torch

from worker.contract.base_model import BaseModelEntry
from worker.contract.pipe import CheckpointEvent, FinishedEvent, StageEvent, TrainCommand
from worker.training.adapter import add_adapters
from worker.training.base_model import (
    BaseModelShelf,
    LoadedBaseModel,
    load_base_model,
    unet_of_same_weights,
)
from worker.training.cache import encode
from worker.training.device import arithmetic_for
from worker.training.images import Picture, Pictures
from worker.training.job import run_job
from worker.training.optimizer import new_accelerator, new_optimizer, new_schedule
from worker.training.plan import make_plan
from worker.training.prior import Prior
from worker.training.step import Lesson, Trainee

CPU = torch.device("cpu")


def command(
    model: Path,
    pictures: list[Path],
    folder: Path,
    *,
    job_id="j",
    seed=7,
    resume_from=None,
    family="sd1",
    class_pictures=(),
    **rules,
) -> TrainCommand:
    """A job on the small base model: 64 pixels, fp32, no previews unless told otherwise."""
    output, checkpoints = folder / "out", folder / "checkpoints"
    for path in (output, checkpoints):
        path.mkdir(parents=True, exist_ok=True)
    return TrainCommand(
        job_id=job_id,
        style_id=1,
        parameters={
            "resolution": 64,
            "mixed_precision": "no",
            "max_train_steps": 6,
            "validation_prompts": [],
            **rules,
        },
        seed=seed,
        base_model=BaseModelEntry(name="tiny", location=str(model), family=family),
        images=[
            {"index": i, "path": str(p), "source": f"s3://b/{p.name}", "caption": f"shape {i}"}
            for i, p in enumerate(pictures)
        ],
        class_images=[
            {"index": len(pictures) + i, "path": str(p), "source": p.name, "caption": "a shape"}
            for i, p in enumerate(class_pictures)
        ],
        output_dir=str(output),
        checkpoint_dir=str(checkpoints),
        resume_from=resume_from,
    )


def load(order: TrainCommand, *, double: bool = False) -> LoadedBaseModel:
    """The job's base model; in fp64 throughout if `double`."""
    model = load_base_model(order.base_model, arithmetic_for("no", CPU), allow_hub=False)
    if double:
        for part in (model.unet, model.vae, *(text.model for text in model.text_encoders)):
            part.double()
    return model


def build(
    order: TrainCommand,
    *,
    double: bool = False,
    compiled: bool = False,
    model: LoadedBaseModel | None = None,
) -> tuple[LoadedBaseModel, Trainee, Lesson]:
    """Everything that the loop needs, as `run_job` builds it; in fp64 throughout if `double`.

    With a `model` its base is used, under a UNet of this job's own.
    """
    rules = order.parameters
    if model is None:
        model = load(order, double=double)
    else:
        model = replace(model, unet=unet_of_same_weights(model.unet))
    pictures = read_usable(order, double=double)
    of_class = read_class(order, double=double)
    dataset = encode(model, [*pictures, *of_class], mirrored=rules.random_flip)
    places = range(len(pictures), len(pictures) + len(of_class))
    prior = Prior(dataset, places, rules.prior_loss_weight, made=False) if of_class else None
    plan = make_plan(
        rules,
        len(pictures),
        memory=model.family.memory,
        free_bytes=0,
        launch="compile" if compiled else "eager",
    )
    lesson = Lesson(
        dataset=dataset,
        schedule=model.schedule,
        prediction_type=rules.prediction_type or model.prediction_type,
        parameters=rules,
        plan=plan,
        seed=order.seed,
        prior=prior,
    )
    if plan.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    accelerator = new_accelerator(model.arithmetic)
    text_encoder = model.text_encoders[0].model if rules.train_text_encoder else None
    adapter = add_adapters(model.unet, text_encoder, rules, order.seed)
    optimizer = new_optimizer(accelerator, adapter, rules)
    trainee = Trainee(
        unet=model.unet.train(),
        adapter=adapter,
        accelerator=accelerator,
        optimizer=optimizer,
        schedule=new_schedule(optimizer, rules, plan.total_steps),
        text_encoder=text_encoder,
        losses=torch.full((plan.total_steps,), torch.nan),
    )
    return model, trainee, lesson


def read_usable(order: TrainCommand, *, double: bool = False) -> list[tuple[Picture, torch.Tensor]]:
    """The pictures of a job with their pixels, all of them usable."""
    return _read(order, order.images, double=double)


def read_class(order: TrainCommand, *, double: bool = False) -> list[tuple[Picture, torch.Tensor]]:
    """The pictures of the class that came with a job."""
    return _read(order, order.class_images, double=double) if order.class_images else []


def _read(order, files, *, double):
    pictures = Pictures(files, order.parameters.resolution, "fail")
    return [(picture, pixels.double() if double else pixels) for picture, pixels in pictures]


def run(order: TrainCommand, shelf: BaseModelShelf | None = None, *, stop_after: int | None = None):
    """Run a whole job; stops with a drain once `stop_after` steps were asked for."""
    events, asked = [], [0]

    def should_stop():
        # Once the training has begun it is asked before each step.
        asked[0] += any(isinstance(e, StageEvent) and e.stage == "training" for e in events)
        return "drain" if stop_after is not None and asked[0] > stop_after else None

    ended = run_job(
        order, shelf or BaseModelShelf(), CPU, report=events.append, should_stop=should_stop
    )
    return ended, events


def digests(ended: FinishedEvent) -> dict[str, str]:
    """sha256 of both adapter files."""
    return {f.name: f.sha256 for f in ended.files if f.name.endswith(".safetensors")}


def last_checkpoint(events) -> str:
    """Path of the newest checkpoint that was reported."""
    return [event.path for event in events if isinstance(event, CheckpointEvent)][-1]


def weights_of(trainee: Trainee) -> dict[str, torch.Tensor]:
    """A copy of the adapter's weights."""
    return {name: weight.detach().clone() for name, weight in trainee.weights.items()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two adapters."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
