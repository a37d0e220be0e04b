"""The worker's webhooks, and the three things that a user wants: train, look, cancel."""

import json
import uuid

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.forms.models import model_to_dict
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from training.models import SeenKey, TrainingJob
from worker.client.publishing import InvalidJob, LoraJobClient, PublishFailed
from worker.client.receiving import (
    CompleteBody,
    FailedBody,
    ProgressBody,
    ReceivedWebhook,
    WebhookRejected,
    verify_webhook,
)

State = TrainingJob.State

#: Connects at the first job, anew in every forked server process.
jobs = LoraJobClient(settings.RABBITMQ_URL)


@csrf_exempt
@require_http_methods(["PATCH", "POST"])
def webhook(request: HttpRequest) -> HttpResponse:
    """Whatever the worker says."""
    try:
        received = verify_webhook(
            request.headers,
            request.body,
            token=settings.INTERNAL_API_TOKEN,
            secrets=settings.WEBHOOK_SIGNING_SECRETS,
        )
    except WebhookRejected as error:
        return JsonResponse({"error": str(error)}, status=error.status)
    # A job that an operator has replayed comes under an id that nobody here has seen.
    job, _ = TrainingJob.objects.get_or_create(
        job_id=received.event.job_id, defaults={"style_id": received.event.style_id}
    )
    if isinstance(received.event, ProgressBody):
        return take_progress(job, received.event, received.sequence)
    with transaction.atomic():
        _, first = SeenKey.objects.get_or_create(key=received.idempotency_key)
        if first:  # else it is a repeat: its effects are there, and 200 ends it
            take_end(job.job_id, received)
    return HttpResponse()


def take_progress(job: TrainingJob, event: ProgressBody, sequence: int) -> HttpResponse:
    """The newest report counts, and none after the end: one UPDATE decides, whatever overtakes."""
    TrainingJob.objects.filter(
        job_id=job.job_id, state__in=[State.QUEUED, State.RUNNING], sequence__lt=sequence
    ).update(
        state=State.RUNNING,
        sequence=sequence,
        percent=event.progress.progress_percent,
        seconds_left=event.progress.estimated_seconds,
    )
    # 410 Gone: the worker stops at its next step, uploads nothing, and says CANCELED.
    return HttpResponse(status=410 if job.cancel_requested else 200)


def take_end(job_id: str, received: ReceivedWebhook) -> None:
    """Once a job, in one transaction with the key that says so."""
    match received.event:
        case CompleteBody(model_url=url):
            change = {"state": State.COMPLETED, "percent": 100, "model_url": url}
        case FailedBody(error_code=code, error_message=message):
            state = State.CANCELED if code == "CANCELED" else State.FAILED
            change = {"state": state, "error_code": code, "error_message": message}
    # Mail to the user would go here, by transaction.on_commit.
    TrainingJob.objects.filter(job_id=job_id).update(
        **change, seconds_left=0, notifications=F("notifications") + 1
    )


@csrf_exempt
@require_POST
def train(request: HttpRequest, style_id: int) -> HttpResponse:
    """Publish a job. Its row is there before its first webhook can be."""
    asked = json.loads(request.body)
    job = TrainingJob.objects.create(job_id=str(uuid.uuid4()), style_id=style_id)
    try:
        jobs.submit(
            job_id=job.job_id,
            style_id=style_id,
            images=asked["images"],
            trigger_word=asked.get("trigger_word"),
            parameters=asked.get("parameters"),
            webhook_url=settings.PUBLIC_URL,
        )
    except InvalidJob as error:
        job.delete()
        return JsonResponse({"errors": dict(error.problems)}, status=422)
    except PublishFailed as error:
        # Nobody knows whether it lies in the queue; the same id again would be the same job.
        return JsonResponse({"job_id": job.job_id, "error": str(error)}, status=503)
    return JsonResponse({"job_id": job.job_id}, status=202)


@require_GET
def show(request: HttpRequest, job_id: str) -> HttpResponse:
    """Where a job stands."""
    return JsonResponse(model_to_dict(get_object_or_404(TrainingJob, pk=job_id)))


@csrf_exempt
@require_POST
def cancel(request: HttpRequest, job_id: str) -> HttpResponse:
    """Ask for the end; the worker hears it as the answer to its next report."""
    TrainingJob.objects.filter(pk=job_id).update(cancel_requested=True)
    return HttpResponse(status=202)
