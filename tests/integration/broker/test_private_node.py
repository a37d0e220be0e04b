"""The node that the demo and the tests start for themselves."""

import socket
from pathlib import Path

import pytest

from worker.demo import rabbitmq_node
from worker.demo.rabbitmq_node import RabbitMQNode, RabbitMQUnavailable

#: State of a listening socket in /proc/net/tcp, and 127.0.0.1 and ::1 as they are written there.
_LISTEN, _LOOPBACK = "0A", ("0100007F", "00000000000000000000000001000000")


def listeners(*ports: int) -> set[tuple[str, int]]:
    """Address and port of every listening socket on one of `ports`."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == _LISTEN and int(port, 16) in ports:
                found.add((address, int(port, 16)))
    return found


def ports_of(node: RabbitMQNode) -> tuple[int, int, int]:
    return node._port, node._distribution_port, node._epmd_port


def test_the_node_listens_on_the_loopback_interface_only(private_rabbitmq_node):
    ports = ports_of(private_rabbitmq_node)
    found = listeners(*ports)
    assert {port for _, port in found} == set(ports)
    assert {address for address, _ in found} <= set(_LOOPBACK)


def test_the_node_answers_to_its_own_control_program(private_rabbitmq_node):
    assert str(private_rabbitmq_node.pid) in private_rabbitmq_node.ctl("status")
    with pytest.raises(RuntimeError, match="no-such-verb"):
        private_rabbitmq_node.ctl("no-such-verb")


def test_a_node_that_does_not_start_says_why_and_leaves_nothing_running(tmp_path):
    node = RabbitMQNode(tmp_path / "node", config="no.such.key = 1")
    with pytest.raises(RabbitMQUnavailable, match=r"no\.such\.key"):
        node.start()
    assert node.pid is None
    assert not listeners(*ports_of(node))


def test_a_missing_package_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(rabbitmq_node, "_SCRIPTS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RabbitMQUnavailable, match="apt-get install rabbitmq-server"):
        RabbitMQNode(tmp_path / "node").start()


def test_two_nodes_of_one_machine_share_no_port(tmp_path):
    ports = [port for name in "ab" for port in ports_of(RabbitMQNode(tmp_path / name))]
    for port in ports:
        with socket.socket() as free:
            free.bind(("127.0.0.1", port))
    assert len(set(ports)) == 6
