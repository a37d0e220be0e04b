"""The worker's webhooks, and the three things that a user wants: train, look, cancel."""

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import store
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel

from worker.client.publishing import InvalidJob, LoraJobClient, PublishFailed
from worker.client.receiving import (
    CompleteBody,
    FailedBody,
    ProgressBody,
    ReceivedWebhook,
    WebhookRejected,
    verify_webhook,
)

TOKEN = os.environ["INTERNAL_API_TOKEN"]
#: The current secret first, the former one behind it while workers still use it.
SECRETS = [s for s in os.environ.get("WEBHOOK_SIGNING_SECRETS", "").split(",") if s]
PUBLIC_URL = os.environ.get("PUBLIC_URL", "http://127.0.0.1:8000")

jobs = LoraJobClient(os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/"))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """What is there while the application is."""
    store.make_tables()
    yield
    jobs.close()


app = FastAPI(title="A backend that has styles trained", lifespan=lifespan)


async def verified(request: Request) -> ReceivedWebhook:
    """The webhook of a request, if it is the worker's."""
    try:
        # The bytes as they came: a signature is of them, not of what they mean.
        return verify_webhook(request.headers, await request.body(), token=TOKEN, secrets=SECRETS)
    except WebhookRejected as error:
        raise HTTPException(error.status, str(error)) from None


Verified = Annotated[ReceivedWebhook, Depends(verified)]


# Plain functions, not coroutines: FastAPI runs them on threads, where a database may block.
@app.patch("/api/webhooks/training/progress")
@app.post("/api/webhooks/training/complete")
@app.post("/api/webhooks/training/failed")
def webhook(received: Verified) -> Response:
    """Whatever the worker says."""
    event = received.event
    # A job that an operator has replayed comes under an id that nobody here has seen.
    store.add(event.job_id, event.style_id)
    match event:
        case ProgressBody(progress=progress):
            canceled = store.take_progress(
                event.job_id,
                received.sequence or 0,
                progress.progress_percent,
                progress.estimated_seconds,
            )
            # 410 Gone: the worker stops at its next step, uploads nothing, and says CANCELED.
            return Response(status_code=410 if canceled else 200)
        case CompleteBody(model_url=url):
            first = store.take_end(
                event.job_id, received.idempotency_key, "completed", model_url=url
            )
        case FailedBody(error_code=code, error_message=message):
            first = store.take_end(
                event.job_id,
                received.idempotency_key,
                "canceled" if code == "CANCELED" else "failed",
                error_code=code,
                error_message=message,
            )
    # Mail to the user would go here, if it is the first time.
    return Response(headers={"X-Repeat": "no" if first else "yes"})


class Wish(BaseModel):
    """What a user may ask for; the client says what is wrong with it, by field."""

    images: list[str]
    trigger_word: str | None = None
    parameters: dict[str, Any] = {}


@app.post("/styles/{style_id}/train", status_code=202)
def train(style_id: int, wish: Wish) -> dict[str, str]:
    """Publish a job. Its row is there before its first webhook can be."""
    job_id = str(uuid.uuid4())
    store.add(job_id, style_id)
    try:
        jobs.submit(job_id=job_id, style_id=style_id, webhook_url=PUBLIC_URL, **dict(wish))
    except InvalidJob as error:
        store.remove(job_id)
        raise HTTPException(422, dict(error.problems)) from None
    except PublishFailed as error:
        # Nobody knows whether it lies in the queue; the same id again would be the same job.
        raise HTTPException(503, {"job_id": job_id, "error": str(error)}) from None
    return {"job_id": job_id}


@app.get("/jobs/{job_id}")
def show(job_id: str) -> dict[str, Any]:
    """Where a job stands."""
    if (found := store.find(job_id)) is None:
        raise HTTPException(404)
    return found


@app.post("/jobs/{job_id}/cancel", status_code=202)
def cancel(job_id: str) -> None:
    """Ask for the end; the worker hears it as the answer to its next report."""
    store.request_cancel(job_id)
