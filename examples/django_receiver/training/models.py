"""What a backend remembers of its trainings."""

from django.db import models


class TrainingJob(models.Model):
    """A job, as far as its events have told."""

    class State(models.TextChoices):
        """Where it stands; the last three are the end."""

        QUEUED = "queued"
        RUNNING = "running"
        COMPLETED = "completed"
        FAILED = "failed"
        CANCELED = "canceled"

    job_id = models.CharField(primary_key=True, max_length=200)
    style_id = models.BigIntegerField(db_index=True)
    state = models.CharField(max_length=10, choices=State, default=State.QUEUED)
    cancel_requested = models.BooleanField(default=False)
    # Of the newest report: a lower sequence number is an older one.
    sequence = models.BigIntegerField(default=0)
    percent = models.PositiveSmallIntegerField(default=0)
    seconds_left = models.PositiveIntegerField(null=True)
    model_url = models.CharField(max_length=2000, blank=True)
    error_code = models.CharField(max_length=50, blank=True)
    error_message = models.TextField(blank=True)
    # How often its user was told of the end: it has to be once.
    notifications = models.PositiveSmallIntegerField(default=0)


class SeenKey(models.Model):
    """An Idempotency-Key that was acted on. Rows older than a week can go."""

    key = models.CharField(primary_key=True, max_length=300)
    received_at = models.DateTimeField(auto_now_add=True)
