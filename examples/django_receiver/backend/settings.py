"""Only what the example needs; the last five lines are about training."""

import os
import secrets

SECRET_KEY = os.environ.get("SECRET_KEY") or secrets.token_urlsafe(32)
DEBUG = False
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "127.0.0.1,localhost").split(",")
ROOT_URLCONF = "backend.urls"
INSTALLED_APPS = ["training"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", "db.sqlite3"),
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }
}

RABBITMQ_URL = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/")
PUBLIC_URL = os.environ.get("PUBLIC_URL", "http://127.0.0.1:8000")
INTERNAL_API_TOKEN = os.environ["INTERNAL_API_TOKEN"]
#: The current secret first, the former one behind it while workers still use it.
WEBHOOK_SIGNING_SECRETS = [s for s in os.environ.get("WEBHOOK_SIGNING_SECRETS", "").split(",") if s]
