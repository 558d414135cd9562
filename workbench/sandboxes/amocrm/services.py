"""The rows of the plain services (amoCRM reference, sections 1.3 and 1.6, with the fields of its appendix A)."""

from collections.abc import Mapping
from typing import Any, Literal

from workbench.sandboxes.amocrm.bodies import FieldBody, Id, Time, UserId
from workbench.sandboxes.amocrm.tables import Service

type Object = dict[str, Any]
type Objects = list[dict[str, Any]]
type EntityType = Literal["leads", "contacts", "companies", "customers"]
type CatalogType = Literal["regular", "invoices", "products", "suppliers"]

TAG_COLORS = frozenset({"EBEBEB", "D0D0D0", "F2DDF7", "D1A4DC", "FF8F92", "FFC8C8", "C7DB8C", "DDEBB5", "8699DA"}) | {
    *("AABDFF", "FFCE5A", "FFE193", "90CDB0", "C6F4DE", "A9A5D7", "D8D5FF", "86C0FC", "832161", "6A0F49"),
    *("0C7C59", "10599D", "9D2B32", "247BA0"),
}

_READ = frozenset({"list", "get"})
_WRITE = frozenset({"add", "update_one"})
_CRUD = _READ | _WRITE | {"update"}
_STAMPS = frozenset({"created_at", "updated_at", "created_by", "updated_by", "account_id"})
_BY: Mapping[str, Any] = {"created_by": UserId, "updated_by": UserId, "created_at": Time, "updated_at": Time}

TASKS = Service(
    path="tasks",
    key="tasks",
    verbs=_CRUD,
    first_id=7_087_001,
    takes={
        **_BY,
        "text": str,
        "complete_till": Time,
        "responsible_user_id": Id,
        "task_type_id": Id,
        "duration": int,
        "entity_type": EntityType,
        "entity_id": Id,
        "is_completed": bool,
        "result": Object,
    },
    needs=("text", "complete_till"),
    starts={
        "responsible_user_id": None,
        "group_id": 0,
        "task_type_id": 1,
        "duration": 0,
        "entity_type": None,
        "entity_id": None,
        "is_completed": False,
        "result": [],
    },
    stamps=_STAMPS,
    filters=frozenset({"id", "created_by", "is_completed", "task_type_id", "responsible_user_id"})
    | {"entity_type", "entity_id", "updated_at"},
    orders=frozenset({"id", "created_at", "complete_till"}),
)

CATALOGS = Service(
    path="catalogs",
    key="catalogs",
    verbs=_CRUD,
    first_id=7_001,
    takes={
        **_BY,
        "name": str,
        "type": CatalogType,
        "sort": int,
        "can_add_elements": bool,
        "can_show_in_cards": bool,
        "can_link_multiple": bool,
    },
    needs=("name",),
    starts={
        "sort": 10,
        "type": "regular",
        "can_add_elements": True,
        "can_show_in_cards": False,
        "can_link_multiple": True,
        "can_be_deleted": True,
        "sdk_widget_code": None,
    },
    stamps=_STAMPS,
    filters=frozenset({"type"}),
    filters_at_top=True,
)

ELEMENTS = Service(
    path="catalogs/elements",
    key="elements",
    verbs=_CRUD,
    first_id=525_001,
    takes={**_BY, "name": str, "currency_id": Id, "custom_fields_values": list[FieldBody]},
    needs=("name",),
    starts={"is_deleted": False, "currency_id": None, "custom_fields_values": None},
    stamps=_STAMPS,
    filters=frozenset({"id"}),
    filters_at_top=True,
    searches=("name", "custom_fields_values"),
)

FIELD_GROUPS = Service(
    path="custom_fields/groups",
    key="custom_field_groups",
    verbs=_READ | _WRITE | {"delete_one"},
    takes={"name": str, "sort": int, "fields": list[Id]},
    needs=("name",),
    starts={"sort": 10, "is_predefined": False, "type": "custom", "fields": []},
    paged=False,
)

TAGS = Service(
    path="tags",
    key="tags",
    verbs=frozenset({"list", "add", "update", "update_one"}),
    first_id=500_001,
    takes={"name": str, "color": str},
    needs=("name",),
    starts={"color": None},
    filters=frozenset({"id", "name"}),
    searches=("name",),
    unique="name",
)

LOSS_REASONS = Service(
    path="leads/loss_reasons",
    key="loss_reasons",
    verbs=_READ | _WRITE | {"delete_one"},
    first_id=4_203_001,
    takes={"name": str, "sort": int},
    needs=("name",),
    starts={"sort": 100_000},
    stamps=frozenset({"created_at", "updated_at"}),
    paged=False,
    seeds=(
        {"name": "Слишком дорого", "created_at": 1_600_000_000, "updated_at": 1_600_000_000},
        {"name": "Пропала потребность", "created_at": 1_600_000_000, "updated_at": 1_600_000_000},
    ),
)

ROLES = Service(
    path="roles",
    key="roles",
    verbs=_CRUD | {"delete_one"},
    first_id=34_001,
    takes={"name": str, "rights": Object},
    needs=("name", "rights"),
)

CUSTOMER_STATUSES = Service(
    path="customers/statuses",
    key="statuses",
    verbs=_READ | _WRITE | {"delete_one"},
    first_id=4_051_001,
    takes={"name": str, "sort": int, "color": str},
    needs=("name",),
    starts={"sort": 10, "is_default": False, "conditions": [], "color": "#99ccff", "type": 0},
    stamps=frozenset({"account_id"}),
    paged=False,
    seeds=(
        {"name": "Новый покупатель", "is_default": True},
        {"name": "Постоянный покупатель", "sort": 20},
    ),
)

SEGMENTS = Service(
    path="customers/segments",
    key="segments",
    verbs=_READ | _WRITE,
    first_id=51_001,
    takes={
        "name": str,
        "color": str,
        "available_products_price_types": list[Any],
        "custom_fields_values": list[FieldBody],
    },
    needs=("name",),
    starts={
        "color": "10599d",
        "customers_count": 0,
        "available_products_price_types": [],
        "custom_fields_values": None,
    },
    stamps=frozenset({"created_at", "updated_at", "account_id"}),
    single=True,
)

TRANSACTIONS = Service(
    path="customers/transactions",
    key="transactions",
    verbs=_READ | {"add", "delete_one"},
    first_id=2_801_001,
    takes={
        "price": int | float,
        "completed_at": Time,
        "comment": str,
        "next_date": Time,
        "next_price": int,
        "metadata": Object,
        "_embedded": Object,
    },
    needs=("price",),
    starts={"comment": None, "completed_at": None, "is_deleted": False, "metadata": None},
    stamps=_STAMPS,
    filters=frozenset({"id"}),
)

SOURCES = Service(
    path="sources",
    key="sources",
    verbs=_CRUD | {"delete", "delete_one"},
    first_id=13_001,
    takes={
        "name": str,
        "external_id": str,
        "pipeline_id": Id,
        "default": bool,
        "origin_code": str,
        "services": Objects,
    },
    needs=("name", "external_id"),
    starts={"pipeline_id": None, "default": False, "origin_code": None, "services": []},
    filters=frozenset({"external_id"}),
    paged=False,
    most=50,
)

WEBSITE_BUTTONS = Service(path="website_buttons", key="website_buttons", verbs=_READ, id="source_id", first_id=14_001)

SHORT_LINKS = Service(
    path="short_links",
    key="short_links",
    verbs=_READ | {"add"},
    first_id=61_001,
    takes={"url": str, "metadata": Object},
    needs=("url",),
    stamps=frozenset({"account_id"}),
)

CHAT_TEMPLATES = Service(
    path="chats/templates",
    key="chat_templates",
    verbs=_CRUD | {"delete", "delete_one"},
    first_id=71_001,
    takes={
        "name": str,
        "content": str,
        "type": Literal["amocrm", "waba"],
        "buttons": Objects,
        "attachment": Object,
        "is_editable": bool,
        "external_id": str,
        "waba_header": str,
        "waba_footer": str,
        "waba_category": str,
        "waba_language": str,
        "waba_examples": Object,
    },
    needs=("name", "content"),
    starts={
        "type": "amocrm",
        "buttons": [],
        "attachment": None,
        "is_editable": True,
        "external_id": None,
        **dict.fromkeys(("waba_header", "waba_footer", "waba_category", "waba_language", "waba_examples")),
    },
    stamps=frozenset({"created_at", "updated_at", "account_id"}),
    filters=frozenset({"external_id"}),
)

WIDGETS = Service(
    path="widgets",
    key="widgets",
    verbs=_READ,
    id="code",
    seeds=(
        {
            "code": "relay_widget",
            "id": 742_001,
            "version": "1.0.2",
            "rating": "5.00",
            "settings_template": [{"key": "token", "name": "Токен", "type": "text", "is_required": True}],
            "is_lead_source": False,
            "is_work_with_dp": True,
            "is_crm_template": False,
            "client_uuid": None,
            "is_active_in_account": False,
            "pipeline_id": None,
            "settings": None,
        },
    ),
)

TALKS = Service(
    path="talks", key="talks", verbs=_READ, id="talk_id", first_id=165, filters=frozenset({"entity_id", "contact_id"})
)

BOTS = Service(
    path="bots",
    key="bots",
    verbs=_READ,
    first_id=28_001,
    seeds=(
        {"name": "Приветствие", "is_active": True, "type": "salesbot"},
        {"name": "Напоминание", "is_active": True, "type": "salesbot"},
    ),
)

CURRENCIES = Service(
    path="currencies",
    key="currencies",
    verbs=frozenset({"list"}),
    id="code",
    seeds=tuple({"code": code} for code in ("RUB", "UAH", "KZT", "BYN", "USD", "EUR")),
)

EVENTS = Service(path="events", key="events", verbs=_READ, orders=frozenset())

_HAPPENINGS: Mapping[str, str] = {
    "lead_added": "Новая сделка",
    "lead_deleted": "Сделка удалена",
    "lead_restored": "Сделка восстановлена",
    "lead_status_changed": "Изменение этапа продажи",
    "lead_linked": "Прикрепление сделки",
    "lead_unlinked": "Открепление сделки",
    "contact_added": "Новый контакт",
    "contact_deleted": "Контакт удалён",
    "contact_restored": "Контакт восстановлен",
    "contact_linked": "Прикрепление контакта",
    "contact_unlinked": "Открепление контакта",
    "company_added": "Новая компания",
    "company_deleted": "Компания удалена",
    "company_restored": "Компания восстановлена",
    "company_linked": "Прикрепление компании",
    "company_unlinked": "Открепление компании",
    "customer_added": "Новый покупатель",
    "customer_deleted": "Покупатель удалён",
    "task_added": "Новая задача",
    "task_deleted": "Задача удалена",
    "task_completed": "Завершение задачи",
    "entity_responsible_changed": "Ответственный изменён",
    "entity_tag_added": "Теги добавлены",
    "entity_tag_deleted": "Теги убраны",
    "sale_field_changed": "Изменение поля «Бюджет»",
    "name_field_changed": "Изменение поля «Название»",
    "custom_field_value_changed": "Изменение поля",
    "incoming_call": "Входящий звонок",
    "outgoing_call": "Исходящий звонок",
    "incoming_chat_message": "Входящее сообщение",
    "outgoing_chat_message": "Исходящее сообщение",
    "common_note_added": "Новое примечание",
    "attachment_note_added": "Добавлен новый файл",
    "service_note_added": "Новое системное примечание",
    "talk_created": "Беседа создана",
    "talk_closed": "Беседа закрыта",
}

EVENT_TYPES = Service(
    path="events/types",
    key="events_types",
    verbs=frozenset({"list"}),
    id="key",
    paged=False,
    seeds=tuple(
        {"key": key, "type": number, "lang": lang} for number, (key, lang) in enumerate(_HAPPENINGS.items(), start=1)
    ),
)

UNSORTED = Service(
    path="leads/unsorted",
    key="unsorted",
    verbs=_READ,
    id="uid",
    filters=frozenset({"uid", "category", "pipeline_id"}),
    orders=frozenset({"created_at"}),
)

FILES = Service(
    path="files",
    key="files",
    verbs=_READ | {"update_one"},
    id="uuid",
    takes={"name": str, "version_uuid": str, "updated_by": Object},
)
