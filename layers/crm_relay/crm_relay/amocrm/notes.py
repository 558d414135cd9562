"""What a note's `params` hold, by its type (amoCRM reference, section 3.2)."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Params(BaseModel):
    """Params of a type that is not listed, or that has none; whatever is in them is kept."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)


class TextParams(Params):
    """A text: common."""

    text: str | None = None


class AttachmentParams(Params):
    """A file on the drive: attachment. `original_name` and `is_drive_attachment` are read only."""

    file_uuid: str | None = None
    version_uuid: str | None = None
    file_name: str | None = None
    original_name: str | None = None
    is_drive_attachment: bool | None = None


class CallParams(Params):
    """A call: call_in, call_out. `call_status` is 1 (left a message) to 8 (undefined), `duration` in seconds."""

    uniq: str | None = None
    duration: int | None = None
    source: str | None = None
    link: str | None = None
    phone: str | None = None
    call_result: str | None = None
    call_status: int | None = None
    call_responsible: int | str | None = None


class SmsParams(Params):
    """A short message: sms_in, sms_out."""

    text: str | None = None
    phone: str | None = None


class ServiceParams(Params):
    """What an integration says: service_message, extended_service_message."""

    service: str | None = None
    text: str | None = None


class CashierParams(Params):
    """A message to the cashier: message_cashier. `status` is created, shown or canceled."""

    status: str | None = None
    text: str | None = None


class InvoiceParams(Params):
    """A paid invoice: invoice_paid, bill_paid."""

    service: str | None = None
    text: str | None = None
    icon_url: str | None = None


class PlaceParams(Params):
    """A place: geolocation."""

    text: str | None = None
    address: str | None = None
    longitude: str | None = None
    latitude: str | None = None


class UrlParams(Params):
    """An address: site_visit; link_followed, which is read only."""

    url: str | None = None


class TargetingParams(Params):
    """A campaign: targeting_in, targeting_out. `service` is facebook, vkontakte, mailchimp or adwords."""

    contacts: Any = None
    campaign: Any = None
    service: str | None = None


class ZoomParams(Params):
    """A conference: zoom_meeting."""

    conference: Any = None
    recordings: Any = None


class AiParams(Params):
    """What the assistant found: ai_result."""

    text: str | None = None
    answer_id: int | str | None = None
    talk_id: int | str | None = None
    is_error: bool | None = None


class MailParams(Params):
    """A mail, read only: amomail_message."""

    thread_id: int | str | None = None
    message_id: int | str | None = None
    private: bool | None = None
    income: bool | None = None
    from_: Any = Field(default=None, alias="from")
    to: Any = None
    subject: str | None = None
    content_summary: str | None = None
    attach_cnt: int | None = None
    delivery: Any = None


class TransactionParams(Params):
    """A purchase, read only: transaction."""

    transaction_id: int | None = None


class DropboxParams(Params):
    """A file elsewhere, read only: dropbox_attachment."""

    link: str | None = None
    filename: str | None = None


PARAMS: Mapping[str, type[Params]] = {
    "common": TextParams,
    "attachment": AttachmentParams,
    "call_in": CallParams,
    "call_out": CallParams,
    "sms_in": SmsParams,
    "sms_out": SmsParams,
    "service_message": ServiceParams,
    "extended_service_message": ServiceParams,
    "message_cashier": CashierParams,
    "invoice_paid": InvoiceParams,
    "bill_paid": InvoiceParams,
    "geolocation": PlaceParams,
    "site_visit": UrlParams,
    "targeting_in": TargetingParams,
    "targeting_out": TargetingParams,
    "zoom_meeting": ZoomParams,
    "ai_result": AiParams,
    "amomail_message": MailParams,
    "chat": Params,
    "transaction": TransactionParams,
    "dropbox_attachment": DropboxParams,
    "link_followed": UrlParams,
}


def params_of(note_type: str | None, raw: Mapping[str, Any]) -> Params:
    """Return the params of a note; what does not fit its type's is kept as it is."""
    model = PARAMS.get(note_type or "", Params)
    try:
        return model.model_validate(raw)
    except ValueError:
        return Params.model_validate(raw)
