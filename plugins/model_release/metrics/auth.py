"""How a request to Prometheus shows who asks: a bearer token, or Amazon's signature. Neither is ever in a message."""

from __future__ import annotations

from typing import Any

import requests

from model_release.errors import MetricsUnavailable

# Amazon Managed Service for Prometheus, as a signature names it.
_SERVICE = "aps"


class Bearer(requests.auth.AuthBase):
    """`Authorization: Bearer …`."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request


class SigV4(requests.auth.AuthBase):
    """Signature Version 4 for Amazon Managed Service for Prometheus, by botocore.

    `credentials` are botocore's; those that expire are renewed by themselves. Each request is signed as it is sent.
    Source: https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
    """

    def __init__(self, credentials: Any, region: str) -> None:
        self._credentials, self._region = credentials, region

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError

        # A space is "+" in a form and "%20" in a signature; a "+" that was meant is "%2B" by now.
        address, mark, query = (request.url or "").partition("?")
        request.url = address + mark + query.replace("+", "%20")
        kind = request.headers.get("Content-Type")
        signed = AWSRequest(
            method=request.method,
            url=request.url,
            data=request.body or b"",
            headers={"Content-Type": kind} if kind else {},
        )
        try:
            SigV4Auth(self._credentials, _SERVICE, self._region).add_auth(signed)
        except BotoCoreError as error:
            raise MetricsUnavailable(f"Prometheus: no AWS credentials to sign with: {error}") from error
        request.headers.update(dict(signed.headers.items()))
        return request
