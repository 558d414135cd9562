"""One-time tokens that widgets and bots send along, verified (amoCRM reference, section 5.8).

It needs PyJWT, which the Lambda layer does not hold: a function that wants it has to bring it along.
"""

from typing import Any

import jwt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crm_relay.amocrm.oauth import App


class Refused(Exception):
    """The token proves nothing."""


class VerificationFailed(Refused):
    """amoCRM has not made it, or not for this integration."""


class WrongDestination(Refused):
    """It was made for another receiver."""


class Expired(Refused):
    """It was good once."""


class WidgetToken(BaseModel):
    """Who uses the widget, and where. `token_uuid` is used once: whoever remembers it knows a replay."""

    model_config = ConfigDict(frozen=True)

    token_uuid: str = Field(alias="jti")
    account_domain: str = Field(alias="iss")
    account_subdomain: str = Field(alias="subdomain")
    client_uuid: str
    account_id: int
    user_id: int
    is_admin: bool = False
    expires_at: int = Field(alias="exp")


class BotToken(BaseModel):
    """Which bot asks, and about what; `entity_type` 2 is a lead, 12 a customer."""

    model_config = ConfigDict(frozen=True)

    account_domain: str = Field(alias="iss")
    account_subdomain: str = Field(alias="subdomain")
    client_uuid: str
    account_id: int
    entity_id: int
    entity_type: int
    bot_type: str
    expires_at: int = Field(alias="exp")


def read_widget_token(token: str, app: App) -> WidgetToken:
    """Read the X-Auth-Token that a widget's authorized request brings; it is good for 30 minutes.

    Raises:
        VerificationFailed, WrongDestination, Expired: it proves nothing.
    """
    scheme, _, rest = app.redirect_uri.partition("://")
    audience = f"{scheme}://{rest.partition('/')[0]}"
    return _read(WidgetToken, _claims(token, app, "HS256", audience), app)


def read_bot_token(token: str, app: App, *, receiver: str | None = None) -> BotToken:
    """Read the token of a bot's widget_request; `receiver` is the address that it was made for, if that matters.

    Raises:
        VerificationFailed, WrongDestination, Expired: it proves nothing.
    """
    return _read(BotToken, _claims(token, app, "HS512", receiver), app)


def _claims(token: str, app: App, algorithm: str, audience: str | None) -> dict[str, Any]:
    if not app.client_secret:
        raise VerificationFailed
    options: Any = {"require": ["exp"], "verify_aud": audience is not None}
    try:
        return jwt.decode(token, app.client_secret, algorithms=[algorithm], audience=audience, options=options)
    except jwt.ExpiredSignatureError:
        raise Expired from None
    except (jwt.InvalidAudienceError, jwt.MissingRequiredClaimError) as error:
        if isinstance(error, jwt.MissingRequiredClaimError) and error.claim != "aud":
            raise VerificationFailed from None
        raise WrongDestination from None
    except jwt.PyJWTError:
        raise VerificationFailed from None


def _read[T: (WidgetToken, BotToken)](model: type[T], claims: dict[str, Any], app: App) -> T:
    try:
        read = model.model_validate(claims)
    except ValidationError:
        raise VerificationFailed from None
    if read.client_uuid != app.client_id:
        raise VerificationFailed
    return read
