"""A furnished pair: a partner's portal, where deals come from, and the hub («ЕСБ»), where they go.

Who calls them is not part of it: webhooks and applications, with their secrets, are to be added.
"""

from workbench.sandboxes.bitrix24.items import Item
from workbench.sandboxes.bitrix24.portal import (
    COMPANY,
    CONTACT,
    DEAL,
    Bitrix24Portal,
    Category,
    Option,
    Product,
    Stage,
    User,
    UserField,
)
from workbench.sandboxes.bitrix24.sandbox import Bitrix24Sandbox

SOURCE_SCOPES = frozenset({"crm", "im", "bizproc", "user", "catalog"})
HUB_SCOPES = frozenset({"crm", "catalog", "user"})
"""What a transfer needs in either portal (Bitrix24 reference, section 5)."""

READY = "C3:READY"
"""The partner's stage «Готово к передаче в ЕСБ»."""

_DICTIONARIES = {
    "SOURCE": {"CALL": "Звонок", "WEB": "Веб-сайт", "PARTNER": "Партнёр"},
    "DEAL_TYPE": {"SALE": "Продажа", "SERVICES": "Услуги"},
    "CONTACT_TYPE": {"CLIENT": "Клиенты", "PARTNER": "Партнёры"},
    "COMPANY_TYPE": {"CUSTOMER": "Клиент", "PARTNER": "Партнёр"},
}
_ENDS = (("WON", "Сделка успешна", "S"), ("LOSE", "Сделка провалена", "F"))


def _stages(prefix: str, *stages: tuple[str, str]) -> tuple[Stage, ...]:
    under_way = (Stage(prefix + code, name) for code, name in stages)
    return (*under_way, *(Stage(prefix + code, name, "S" if end == "S" else "F") for code, name, end in _ENDS))


PARTNER = Bitrix24Portal(
    domain="partner.bitrix24.ru",
    member_id="0123456789abcdef0123456789abcdef",
    users=(
        User(1, "Анна", "Администратор", "anna@example.com", is_admin=True),
        User(7, "Борис", "Менеджер", "boris@example.com"),
        User(9, "Вера", "Уволенная", "vera@example.com", active=False),
    ),
    categories=(
        Category(0, "Общая", _stages("", ("NEW", "Новая"), ("PREPARATION", "Подготовка документов"))),
        Category(3, "Партнёрская", _stages("C3:", ("NEW", "Новая"), ("READY", "Готово к передаче в ЕСБ"))),
    ),
    user_fields={
        DEAL: (
            UserField("UF_CRM_1747309879", "string", "Номер договора"),
            UserField("UF_CRM_OBJECT_AREA", "double", "Площадь объекта"),
            UserField("UF_CRM_FLOORS", "integer", "Этажей"),
            UserField("UF_CRM_BUDGET", "money", "Бюджет"),
            UserField("UF_CRM_START_DATE", "date", "Дата начала"),
            UserField("UF_CRM_VISIT_TIME", "datetime", "Время выезда"),
            UserField("UF_CRM_URGENT", "boolean", "Срочно"),
            UserField(
                "UF_CRM_DELIVERY",
                "enumeration",
                "Доставка",
                options=(Option(44, "Самовывоз", "pickup"), Option(45, "Курьер", "courier")),
            ),
            UserField(
                "UF_CRM_SERVICES",
                "enumeration",
                "Услуги",
                multiple=True,
                options=(Option(51, "Монтаж", "mounting"), Option(52, "Замер", "measuring")),
            ),
            UserField("UF_CRM_ENGINEER", "employee", "Инженер"),
            UserField("UF_CRM_TAGS", "string", "Метки", multiple=True),
            UserField("UF_CRM_67BC9A01", "file", "Договор"),
            UserField("UF_CRM_PHOTOS", "file", "Фото", multiple=True),
        ),
        CONTACT: (UserField("UF_CRM_PASSPORT", "string", "Паспорт"),),
        COMPANY: (UserField("UF_CRM_INN", "string", "ИНН"),),
    },
    dictionaries=_DICTIONARIES,
    products=(
        Product(101, "Окно ПВХ 1400×1200", "window-1400"),
        Product(102, "Подоконник 300 мм", "sill-300", type=4),
        Product(103, "Монтаж", "mounting", type=7),
    ),
)

HUB = Bitrix24Portal(
    domain="esb.bitrix24.ru",
    member_id="fedcba9876543210fedcba9876543210",
    users=(
        User(1, "Глеб", "Главный", "gleb@example.com", is_admin=True),
        User(21, "Борис", "Менеджер", "boris@example.com"),
    ),
    categories=(
        Category(0, "Входящие", _stages("", ("NEW", "Новая"), ("EXECUTING", "В работе"))),
        Category(5, "От партнёров", _stages("C5:", ("NEW", "Получена"), ("CHECKED", "Проверена"))),
    ),
    user_fields={
        DEAL: (
            UserField("UF_SOURCE_PORTAL", "string", "Портал-источник"),
            UserField("UF_SOURCE_DEAL_ID", "integer", "Сделка в источнике"),
            UserField("UF_TRANSFER_DATE", "datetime", "Дата передачи"),
            UserField("UF_PARTNER_COMPANY_ID", "integer", "Компания партнёра"),
            UserField("UF_PARTNER_CONTACT_ID", "integer", "Контакт партнёра"),
            UserField("UF_CRM_CONTRACT", "string", "Номер договора"),
            UserField("UF_CRM_AREA", "double", "Площадь объекта"),
            UserField("UF_CRM_BUDGET", "money", "Бюджет"),
            UserField("UF_CRM_START", "date", "Дата начала"),
            UserField("UF_CRM_VISIT", "datetime", "Время выезда"),
            UserField("UF_CRM_URGENT", "boolean", "Срочно"),
            UserField(
                "UF_CRM_DELIVERY",
                "enumeration",
                "Доставка",
                options=(Option(910, "Курьер", "courier"), Option(911, "Самовывоз", "pickup")),
            ),
            UserField(
                "UF_CRM_SERVICES",
                "enumeration",
                "Услуги",
                multiple=True,
                options=(Option(920, "Замер", "measuring"), Option(921, "Монтаж", "mounting")),
            ),
            UserField("UF_CRM_ENGINEER", "employee", "Инженер"),
            UserField("UF_CRM_TAGS", "string", "Метки", multiple=True),
            UserField("UF_CRM_CONTRACT_FILE", "file", "Договор"),
            UserField("UF_CRM_PHOTOS", "file", "Фото", multiple=True),
        ),
        COMPANY: (UserField("UF_CRM_INN", "string", "ИНН"),),
    },
    dictionaries=_DICTIONARIES,
    products=(
        Product(2001, "Окно ПВХ 1400×1200", "window-1400", iblock_id=25),
        Product(2002, "Подоконник 300 мм", "sill-300", iblock_id=25, type=4),
    ),
)


def add_whole_deal(partner: Bitrix24Sandbox, *, stage: str = "C3:NEW") -> Item:
    """Somebody in the partner's portal makes a deal with all that deals can have, by default not yet in `READY`."""
    phone = {"typeId": "PHONE", "valueType": "WORK", "value": "+380501234567"}
    email = {"typeId": "EMAIL", "valueType": "WORK", "value": "maria@example.com"}
    other_phone = {"typeId": "PHONE", "valueType": "MOBILE", "value": "+380507654321"}
    company = partner.add_company(title="ООО «Ромашка»", UF_CRM_INN="7701234567")
    maria = partner.add_contact(name="Мария", lastName="Клиентова", companyId=company.id, fm=[phone, email])
    pavel = partner.add_contact(name="Павел", lastName="Прорабов", companyId=company.id, fm=[other_phone])
    rows = (
        {"productId": 101, "price": 14_500.5, "quantity": 4, "discountTypeId": 2, "discountRate": 10, "taxRate": 20},
        {"productId": 102, "price": 1_200, "quantity": 4},
        {"productName": "Выезд за город", "price": 3_000, "quantity": 1},
    )
    deal = partner.add_deal(
        rows=rows,
        title="Остекление дома",
        categoryId=3,
        stageId=stage,
        assignedById=7,
        companyId=company.id,
        contactIds=[maria.id, pavel.id],
        sourceId="PARTNER",
        comments="Позвонить за час",
        UF_CRM_1747309879="Д-17/2026",
        UF_CRM_OBJECT_AREA=120.5,
        UF_CRM_FLOORS=2,
        UF_CRM_BUDGET="250000|RUB",
        UF_CRM_START_DATE="2026-12-01",
        UF_CRM_VISIT_TIME="2026-11-25T09:30:00+03:00",
        UF_CRM_URGENT="Y",
        UF_CRM_DELIVERY=45,
        UF_CRM_SERVICES=[51, 52],
        UF_CRM_ENGINEER=7,
        UF_CRM_TAGS=["дом", "осень"],
    )
    partner.attach_file(deal.id, "UF_CRM_67BC9A01", "Договор № 17.pdf", b"%PDF-1.4 " + bytes(2_000))
    partner.attach_file(deal.id, "UF_CRM_PHOTOS", "фасад.jpg", b"\xff\xd8\xff" + bytes(3_000))
    return deal
