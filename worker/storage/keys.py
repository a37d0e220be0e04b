"""Where does what lie in the bucket? The layout of keys (contract §3), pure."""

from dataclasses import dataclass

from worker.storage.store import ObjectUrl

#: The adapter as diffusers loads it.
ADAPTER_FILE = "lora_weights.safetensors"

#: The adapter as ComfyUI and A1111 load it.
KOHYA_FILE = "lora_weights.kohya.safetensors"


#: Folders of the bucket in which all of the following lies.
OWN_FOLDERS = ("models/", "jobs/")


@dataclass(frozen=True)
class StyleKeys:
    """What lies under one style's prefix."""

    bucket: str
    style_id: int

    @property
    def prefix(self) -> ObjectUrl:
        """`models/style_{style_id}/`: the stable files, replaced by a later job."""
        return ObjectUrl(self.bucket, f"models/style_{self.style_id}/")

    @property
    def adapter(self) -> ObjectUrl:
        """The adapter that backends load."""
        return self.stable(ADAPTER_FILE)

    @property
    def current(self) -> ObjectUrl:
        """Which job's files the stable ones are."""
        return self.stable("current.json")

    def stable(self, name: str) -> ObjectUrl:
        """The stable file `name`, such as `previews/000.png`."""
        return self.prefix.child(name)

    def job_prefix(self, job_id: str) -> ObjectUrl:
        """`models/style_{style_id}/jobs/{job_id}/`: one job's files, never replaced."""
        return self.prefix.child(f"jobs/{job_id}/")


@dataclass(frozen=True)
class JobKeys:
    """One job's own state, under `jobs/{job_id}/`."""

    bucket: str
    job_id: str

    @property
    def prefix(self) -> ObjectUrl:
        """Everything of this job but its adapter."""
        return ObjectUrl(self.bucket, f"jobs/{self.job_id}/")

    @property
    def lease(self) -> ObjectUrl:
        """Who works on it."""
        return self.prefix.child("lease.json")

    @property
    def result(self) -> ObjectUrl:
        """How it ended."""
        return self.prefix.child("result.json")

    @property
    def announced(self) -> ObjectUrl:
        """Its terminal event lies in the outbox."""
        return self.prefix.child("announced.json")

    @property
    def first_send(self) -> ObjectUrl:
        """Somebody sends, or has sent, its terminal event for the first time."""
        return self.prefix.child("first_send.json")

    @property
    def delivered(self) -> ObjectUrl:
        """Its terminal event has reached its receiver, or was given up."""
        return self.prefix.child("delivered.json")

    @property
    def cancel(self) -> ObjectUrl:
        """Somebody asked for it to end."""
        return self.prefix.child("cancel.json")

    @property
    def checkpoint(self) -> ObjectUrl:
        """Which checkpoint is the newest."""
        return self.prefix.child("checkpoint.json")

    @property
    def checkpoints(self) -> ObjectUrl:
        """Prefix of the checkpoints."""
        return self.prefix.child("checkpoints/")

    def checkpoint_file(self, epoch: int, step: int) -> ObjectUrl:
        """The checkpoint after `step` steps, written by the claim number `epoch`.

        Two claims never write one key, so a replaced owner cannot spoil its successor's file.
        """
        return self.checkpoints.child(f"{epoch:06d}-{step:08d}.safetensors")

    @property
    def outputs(self) -> ObjectUrl:
        """Prefix of what the claims have finished."""
        return self.prefix.child("output/")

    def output_prefix(self, epoch: int) -> ObjectUrl:
        """Where the claim number `epoch` puts its finished files before the result is committed."""
        return self.outputs.child(f"{epoch:06d}/")
