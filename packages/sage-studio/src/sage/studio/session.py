"""Who may look: a login token that works once and the session that it buys. No I/O."""

from __future__ import annotations

import hmac
import secrets

__all__ = ["Gate"]


class Gate:
    """One login token, made here and redeemed at most once; afterwards only the session counts."""

    def __init__(self) -> None:
        self._token: str | None = secrets.token_urlsafe(32)
        self._session: str | None = None

    @property
    def token(self) -> str:
        """The login token. Raises ValueError once it has been redeemed."""
        if self._token is None:
            raise ValueError("The login token was redeemed; it works once.")
        return self._token

    def redeem(self, token: str) -> str | None:
        """The new session for the right token, None for a wrong or a used one."""
        if self._token is None or not hmac.compare_digest(self._token.encode(), token.encode()):
            return None
        self._token, self._session = None, secrets.token_urlsafe(32)
        return self._session

    def admits(self, session: str | None) -> bool:
        """Whether this is the session that the token bought."""
        if self._session is None or session is None:
            return False
        return hmac.compare_digest(self._session.encode(), session.encode())
