"""`lora-worker models pull`: from a hub of the test's own, through the hub's own client."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "someone/tiny"

#: What a model's repository has beside what training needs; no byte of these may be fetched.
DECOYS = {
    "unet/diffusion_pytorch_model.bin": b"a pickle",
    "safety_checker/model.safetensors": b"weights of nobody's interest",
    "README.md": b"# tiny",
    "v1-5-pruned.safetensors": b"all in one",
}


class Hub:
    """The questions that the client asks: what is there, and this file please."""

    def __init__(self, folder):
        files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        fetched = self.fetched = []

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(with_body=False)

            def do_GET(self):
                self.answer(with_body=True)

            def answer(self, *, with_body):
                if self.path.startswith(f"/api/models/{MODEL}/revision/{COMMIT}"):
                    names = [{"rfilename": name} for name in files]
                    model = {"id": MODEL, "sha": COMMIT, "siblings": names}
                    self.send(200, json.dumps(model).encode(), {}, with_body=with_body)
                    return
                if self.path.startswith(f"/api/models/{MODEL}/tree/{COMMIT}"):
                    tree = [
                        {"type": "file", "path": name, "size": path.stat().st_size, "oid": name}
                        for name, path in files.items()
                    ]
                    self.send(200, json.dumps(tree).encode(), {}, with_body=with_body)
                    return
                name = self.path.partition("?")[0].removeprefix(f"/{MODEL}/resolve/{COMMIT}/")
                if name not in files:
                    self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body=False)
                    return
                body = files[name].read_bytes()
                if with_body:
                    fetched.append(name)
                etag = f'"{hashlib.sha256(body).hexdigest()}"'
                self.send(200, body, {"ETag": etag, "X-Repo-Commit": COMMIT}, with_body=with_body)

            def send(self, status, body, headers, *, with_body):
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub(tiny_base_model, tmp_path):
    folder = tmp_path / "repository"
    shutil.copytree(tiny_base_model, folder)
    for name, body in DECOYS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(body)
    hub = Hub(folder)
    yield hub
    hub.server.shutdown()


@pytest.fixture
def lora_worker(hub, tmp_path):
    catalogue = tmp_path / "base_models.toml"
    row = f'[tiny]\nlocation = "{MODEL}"\nfamily = "sd1"\nrevision = "{COMMIT}"\n'
    catalogue.write_text(row)

    def run(*arguments, **variables):
        if digest := variables.pop("digest", None):
            catalogue.write_text(f'{row}digest = "{digest}"\n')
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "models"),
            "BASE_MODELS_FILE": str(catalogue),
            "DEFAULT_BASE_MODEL": "tiny",
            "WORK_DIR": str(tmp_path / "work"),
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-m", "worker.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def test_a_pulled_model_is_what_training_needs_and_trains_without_the_hub(
    lora_worker, hub, pictures, tmp_path
):
    before = lora_worker("models", "list")
    assert (before.returncode, "not here" in before.stdout) == (69, True)
    pulled = lora_worker("models", "pull", "tiny")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.startswith("tiny\there, ")
    assert set(hub.fetched).isdisjoint(DECOYS)
    assert "unet/diffusion_pytorch_model.safetensors" in hub.fetched

    asked = len(hub.fetched)
    digest = pulled.stdout.rpartition(" ")[2].strip()
    assert lora_worker("models", "pull", "tiny", digest=digest).returncode == 0
    folder = ("--images", str(pictures[0].parent), "--output", str(tmp_path / "out"))
    asks = ("-p", "max_train_steps=1", "-p", "resolution=64", "-p", "mixed_precision=no")
    trained = lora_worker("train", *folder, *asks, HF_ENDPOINT="http://127.0.0.1:1")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "out" / "lora_weights.safetensors").exists()
    assert len(hub.fetched) == asked


def test_weights_that_are_not_those_of_the_catalogue_are_named(lora_worker):
    pulled = lora_worker("models", "pull", "tiny", digest=f"sha256:{'0' * 64}")
    assert pulled.returncode == 69
    assert "other weights than the catalogue's digest: sha256:" in pulled.stderr


@pytest.mark.parametrize(
    ("name", "variables", "status", "says"),
    [
        ("sd99", {}, 65, "'sd99' is not in the catalogue; it has tiny"),
        ("tiny", {"HF_ENDPOINT": "http://127.0.0.1:1"}, 69, f"{MODEL} cannot be fetched"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_a_sentence(lora_worker, name, variables, status, says):
    pulled = lora_worker("models", "pull", name, **variables)
    assert (pulled.returncode, "Traceback" in pulled.stderr) == (status, False)
    assert says in pulled.stderr
