"""Where the worker calls, and what the rest of a product might call."""

from django.urls import path
from training import views

urlpatterns = [
    path("api/webhooks/training/progress", views.webhook),
    path("api/webhooks/training/complete", views.webhook),
    path("api/webhooks/training/failed", views.webhook),
    path("styles/<int:style_id>/train", views.train),
    path("jobs/<str:job_id>", views.show),
    path("jobs/<str:job_id>/cancel", views.cancel),
]
