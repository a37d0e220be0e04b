"""Whom may the token be sent to? Only hosts that the operator named; without any, nobody."""

from collections.abc import Iterable

from worker.contract.job import webhook_base
from worker.outbound.address import Address, HostList, parse_address


class WebhookNotAllowed(Exception):  # noqa: N818 - a decision, not a malfunction
    """The base is not one that may be called. `message` is one sentence for the sender."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class WebhookAllowList:
    """The operator's `WEBHOOK_ALLOWED_HOSTS`.

    An entry is `host`, `host:port`, or an origin such as `https://host:port`. An entry without a
    port allows that host's default ports alone: 443, and 80 where plain http is allowed.
    """

    def __init__(self, hosts: Iterable[str], require_https: bool) -> None:
        """Raises `ValueError` naming an entry that is not one."""
        self._hosts = HostList(hosts)
        self._require_https = require_https

    def check(self, url: str) -> Address:
        """The base that `url` names, cut off from `/api/webhooks/` on, in canonical spelling.

        Raises:
            WebhookNotAllowed: it is not an address, or not one of an allowed host.
        """
        try:
            address = parse_address(webhook_base(url))
        except ValueError as error:
            raise WebhookNotAllowed(f"The address in webhook_url {error}.") from None
        if address.query or "?" in url:
            raise WebhookNotAllowed("The address in webhook_url has a query; send the base alone.")
        if self._require_https and address.origin.scheme != "https":
            raise WebhookNotAllowed("The address in webhook_url must start with https:// here.")
        if not self._hosts.allows(address.origin):
            raise WebhookNotAllowed(
                f"The host of webhook_url, {address.origin}, is not allowed; "
                "the operator lists allowed hosts in WEBHOOK_ALLOWED_HOSTS."
            )
        return address

    def allows(self, url: str) -> bool:
        """Whether `check` would pass."""
        try:
            self.check(url)
        except WebhookNotAllowed:
            return False
        return True
