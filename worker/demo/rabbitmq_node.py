"""A private RabbitMQ node: own ports, own folder, own epmd, on the loopback interface only."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

#: Where packages put the scripts that run as whoever calls them; the ones on the PATH of Debian
#: switch to the user `rabbitmq` first.
_SCRIPTS = Path("/usr/lib/rabbitmq/bin")

#: Longest time a node may take to accept AMQP connections, seconds.
START_SECONDS = 180.0

#: Longest time a node may take to stop by itself, seconds; then it is killed.
STOP_SECONDS = 20.0

#: What a client says first, and the type of the frame that a broker answers with.
_AMQP_HEADER, _METHOD_FRAME = b"AMQP\x00\x00\x09\x01", b"\x01"

_LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"


class RabbitMQUnavailable(RuntimeError):  # noqa: N818 - a state of the machine
    """There is no RabbitMQ on this machine, or it does not start; the text says what to do."""


class RabbitMQNode:
    """A broker of our own. A context manager: it runs inside of the `with` block.

    It may be stopped or killed and started again: ports and data stay the same.

    Args:
        folder: everything that the node writes lies there.
        config: text of its `rabbitmq.conf`.
        advanced: text of its `advanced.config`, Erlang terms with the full stop.
        plugins: names of the plugins that it has.

    Attributes:
        url: the AMQP address of its default virtual host.
    """

    def __init__(
        self, folder: Path, *, config: str = "", advanced: str = "", plugins: Sequence[str] = ()
    ) -> None:
        self._folder = folder.resolve()
        self._config, self._advanced, self._plugins = config, advanced, plugins
        self._port, self._distribution_port, self._epmd_port = _free_ports(3)
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self.url = self.vhost_url("%2F")

    def __enter__(self) -> "RabbitMQNode":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def vhost_url(self, vhost: str) -> str:
        """The AMQP address of a virtual host, its name percent-encoded."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}/{vhost}"

    def start(self) -> None:
        """Start and wait until AMQP connections are accepted.

        Raises:
            RabbitMQUnavailable: the package is missing, or the node ended while starting.
        """
        server, epmd = _script("rabbitmq-server"), _epmd()
        if server is None or epmd is None:
            raise RabbitMQUnavailable(
                "RabbitMQ is not installed: run `apt-get install rabbitmq-server`, or set "
                "RABBITMQ_URL to the address of a broker that runs already."
            )
        self._write_folder()
        try:
            self._epmd = self._spawn([epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1"])
            # The script then becomes the node instead of waiting for it, so that its process is
            # the node's; it leaves out -noinput, which the node needs without a terminal.
            self._node = self._spawn([server, "-noinput"], RABBITMQ_ALLOW_INPUT="1")
            self._wait_until_up()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop in good order; nothing to do if it does not run."""
        if self._node is not None and self._node.poll() is None:
            self._node.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._node.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the node at once, as a power cut would."""
        for process in (self._node, self._epmd):
            if process is not None:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                process.wait()
        self._node = self._epmd = None

    def ctl(self, *args: str) -> str:
        """Run `rabbitmqctl` on this node; returns what it prints.

        Raises:
            RuntimeError: it failed; the text holds its answer.
        """
        command = [_script("rabbitmqctl") or "rabbitmqctl", "-q", *args]
        done = subprocess.run(  # noqa: S603 - our own arguments, no shell
            command, env=self._environment(), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    @property
    def pid(self) -> int | None:
        """The node's process, while it runs."""
        return self._node.pid if self._node is not None else None

    def _environment(self, **more: str) -> dict[str, str]:
        """Ours alone: settings of another node on this machine must not leak in."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
        folder = self._folder
        return kept | {
            "HOME": str(folder / "home"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"node{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK_ONLY,
            "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_ONLY,
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "no-environment-file"),
            **more,
        }

    def _write_folder(self) -> None:
        for name in ("data", "log", "home"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "rabbitmq.conf").write_text(self._config + "\n")
        (self._folder / "advanced.config").write_text(self._advanced or "[].\n")
        (self._folder / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        cookie = self._folder / "home" / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)

    def _spawn(self, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log" / "output.txt").open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - fixed commands
                command,
                env=self._environment(**environment),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A Ctrl-C is ours to answer: the node is stopped last, not first.
                start_new_session=True,
            )

    def _wait_until_up(self) -> None:
        assert self._node is not None  # noqa: S101 - just spawned
        deadline = time.monotonic() + START_SECONDS
        while not _speaks_amqp(self._port):
            if self._node.poll() is not None or time.monotonic() > deadline:
                output = (self._folder / "log" / "output.txt").read_text(errors="replace")
                raise RabbitMQUnavailable(
                    f"RabbitMQ did not start; its logs are in {self._folder / 'log'}. "
                    f"It said: {_gist(output)}"
                )
            time.sleep(0.1)


def _gist(output: str) -> str:
    """The first errors of a node's output; what follows them are the reports of its processes."""
    lines = output.splitlines()
    errors = [text.strip() for line in lines if (text := line.partition("[error]")[2])]
    return "; ".join(text.split("> ", 1)[-1] for text in errors[:6]) or " ".join(lines[-6:])


def _script(name: str) -> str | None:
    packaged = _SCRIPTS / name
    return str(packaged) if packaged.exists() else shutil.which(name)


def _epmd() -> str | None:
    bundled = sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))
    return shutil.which("epmd") or (str(bundled[-1]) if bundled else None)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _speaks_amqp(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(_AMQP_HEADER)
            return connection.recv(1) == _METHOD_FRAME
    except OSError:
        return False
