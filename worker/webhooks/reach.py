"""Can a receiver be reached? A connection and, where that is asked for, TLS; no request is sent."""

import socket
import ssl

from worker.outbound.address import HostList, Origin

#: Longest time for connection and handshake each, seconds.
_SECONDS = 5.0


def why_unreachable(hosts: HostList, *, require_https: bool) -> dict[str, str]:
    """Each allowed `host:port` and why it cannot be reached; empty text for those that can.

    A host that is allowed on the default ports is reached if either of them answers.
    """
    found: dict[str, str] = {}
    for origin in sorted(hosts.origins, key=lambda origin: (origin.host, -origin.port)):
        if require_https and origin.scheme != "https":
            continue
        default = str(origin) == f"{origin.scheme}://{origin.host}"
        name = origin.host if default else f"{origin.host}:{origin.port}"
        if found.get(name, "unknown"):
            found[name] = _why(origin, tls=origin.scheme == "https" and (default or require_https))
    return found


def _why(origin: Origin, *, tls: bool) -> str:
    host = origin.host.strip("[]")
    try:
        with socket.create_connection((host, origin.port), timeout=_SECONDS) as connected:
            if tls:
                context = ssl.create_default_context()
                with context.wrap_socket(connected, server_hostname=host):
                    return ""
    except socket.gaierror:
        return "its name cannot be resolved"
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not accepted: {error.verify_message}"
    except (ssl.SSLError, TimeoutError, OSError) as error:
        return f"port {origin.port}: {getattr(error, 'strerror', None) or type(error).__name__}"
    return ""
