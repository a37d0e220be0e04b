"""Queue and events as an AsyncAPI document, from the worker's side: what it receives and sends."""

from typing import Any

from pydantic import BaseModel

from worker import __version__
from worker.contract import examples
from worker.contract.events import ENDPOINTS, EventName
from worker.contract.job import MESSAGE_TYPE
from worker.contract.openapi import SECURITY_SCHEMES
from worker.contract.schema import definitions


def asyncapi() -> dict[str, Any]:
    """The document, AsyncAPI 3.0."""
    schemas = definitions("#/components/schemas/{model}")
    # What was sent is kept as it was, whatever it was: that may be why it lies there.
    schemas["AsPublished"] = {"description": "The message as it was published, byte for byte."}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "lora-worker",
            "version": __version__,
            "description": "A training worker: jobs in over RabbitMQ, events out over HTTP.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "broker.example.com:5671",
                "protocol": "amqps",
                "protocolVersion": "0.9.1",
                "description": "RabbitMQ.",
            },
            "backend": {
                "host": "api.example.com",
                "protocol": "https",
                "description": "`webhook_url` of the job's message, up to /api/webhooks/.",
                "security": [{"$ref": "#/components/securitySchemes/internalToken"}],
            },
        },
        "channels": {
            "jobs": _queue(
                MESSAGE_TYPE,
                "Jobs. Declare it durable and without any argument, publish to the default "
                "exchange, persistent.",
                ["flatJob", "envelopedJob"],
            ),
            "deadJobs": _queue(
                f"{MESSAGE_TYPE}.dead", "Jobs that nobody will try again.", ["deadJob"]
            ),
            **{name: _endpoint(name) for name in examples.EVENTS},
        },
        "operations": {
            "takeJob": _operation("receive", "jobs", "Train a style."),
            "buryJob": _operation("send", "deadJobs", "Keep a job that failed, and say why."),
            **{f"report{name.capitalize()}": _report(name) for name in examples.EVENTS},
        },
        "components": {
            "messages": {
                "flatJob": _job("FlatMessage", "Flat", examples.FLAT),
                "envelopedJob": _job("EnvelopedMessage", "Enveloped", examples.ENVELOPED),
                "deadJob": {
                    "title": "A job in quarantine",
                    "headers": {"$ref": "#/components/schemas/DeadLetterHeaders"},
                    "payload": {"$ref": "#/components/schemas/AsPublished"},
                    "examples": [
                        {"headers": examples.DEAD_LETTER_HEADERS, "payload": examples.ENVELOPED}
                    ],
                },
                **{name: _event(example) for name, example in examples.EVENTS.items()},
            },
            "securitySchemes": SECURITY_SCHEMES,
            "schemas": schemas,
        },
    }


def _queue(name: str, description: str, messages: list[str]) -> dict[str, Any]:
    return {
        "address": name,
        "description": description,
        "servers": [{"$ref": "#/servers/broker"}],
        "messages": {m: {"$ref": f"#/components/messages/{m}"} for m in messages},
        "bindings": {
            "amqp": {
                "is": "queue",
                "queue": {"name": name, "durable": True, "exclusive": False, "autoDelete": False},
            }
        },
    }


def _endpoint(event: EventName) -> dict[str, Any]:
    return {
        "address": ENDPOINTS[event][1],
        "servers": [{"$ref": "#/servers/backend"}],
        "messages": {event: {"$ref": f"#/components/messages/{event}"}},
    }


def _operation(action: str, channel: str, summary: str) -> dict[str, Any]:
    binding = {"ack": True} if action == "receive" else {"deliveryMode": 2, "mandatory": True}
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "bindings": {"amqp": binding},
    }


def _report(event: EventName) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{event}"},
        "summary": f"Tell the backend: {event}.",
        "bindings": {"http": {"method": ENDPOINTS[event][0]}},
    }


def _job(schema: str, title: str, example: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": title,
        "payload": {"$ref": f"#/components/schemas/{schema}"},
        "examples": [{"payload": example}],
    }


def _event(example: BaseModel) -> dict[str, Any]:
    name = type(example).__name__
    return {
        "title": name.removesuffix("Body"),
        "headers": {"$ref": "#/components/schemas/WebhookHeaders"},
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "examples": [{"payload": example.model_dump(mode="json")}],
    }
