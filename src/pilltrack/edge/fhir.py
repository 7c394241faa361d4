"""FHIR JSON -> what it orders: the NDCs of a medication and its quantity.

Read are MedicationDispense and MedicationRequest of R4 and R5, alone or in a Bundle, with the
medication coded in place, contained, or elsewhere in the Bundle. Whatever could make the count
wrong is refused and not guessed: a resource that does not stand (cancelled, on hold, a draft,
"do not perform", a mere plan), an extension that may turn its meaning around, requests beside the
dispenses that fulfil them, a resource twice, two patients, one page of several, a quantity that
does not count pills.

Fields: https://hl7.org/fhir/R4/medicationdispense.html, https://hl7.org/fhir/R4/medicationrequest.html
and the same pages of R5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from pilltrack.core.errors import InputRejected

NDC_SYSTEM = "http://hl7.org/fhir/sid/ndc"
STANDING = {  # the values of `status` with which a resource is to be filled, or has been
    "MedicationDispense": ("preparation", "in-progress", "completed"),
    "MedicationRequest": ("active", "completed"),
}
ORDERING = ("order", "original-order", "reflex-order", "filler-order", "instance-order")
MEDICATION = "Medication"
# Codes of v3-orderableDrugForm such as TAB, ERCAP24, CAPLET; words; UCUM's {tbl} and 1.
_PILLS = re.compile(
    r"[a-z]*(tab|cap|pill)(12|24)?|caplets?|tabs|tablets?|tbl|caps|capsules?|pills|each|ea|1"
)
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")


@dataclass(frozen=True)
class Order:
    """So many pills of a medication; `ndcs` are its codes as written, perhaps none."""

    where: str  # for messages
    medication: str  # in words, for messages; may be empty
    ndcs: tuple[str, ...]
    quantity: int | Decimal


class _Part(BaseModel):
    """What is read of a FHIR element; the rest of it is passed over."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", alias_generator=to_camel, allow_inf_nan=False
    )


class _Meaning(_Part):
    """An element whose meaning may be changed by what is not understood here."""

    implicit_rules: str | None = None
    modifier_extension: list[Any] = []


class _Coding(_Part):
    system: str | None = None
    code: str | None = None
    display: str | None = None


class _Concept(_Part):
    coding: list[_Coding] = []
    text: str | None = None


class _Reference(_Part):
    reference: str | None = None


class _CodeableReference(_Part):  # R5
    concept: _Concept | None = None
    reference: _Reference | None = None


class _Quantity(_Part):
    value: int | Decimal | None = None
    comparator: str | None = None
    unit: str | None = None
    code: str | None = None


class _DispenseRequest(_Meaning):
    quantity: _Quantity | None = None


class _Medication(_Meaning):
    resource_type: Literal["Medication"]
    status: str | None = None
    code: _Concept | None = None


class _Contained(_Part):
    id: str | None = None


class _Order(_Meaning):
    resource_type: Literal["MedicationDispense", "MedicationRequest"]
    status: str | None = None
    intent: str | None = None
    do_not_perform: bool = False
    subject: _Reference | None = None
    contained: list[dict[str, Any]] = []
    medication_codeable_concept: _Concept | None = None
    medication_reference: _Reference | None = None
    medication: _CodeableReference | None = None
    quantity: _Quantity | None = None
    dispense_request: _DispenseRequest | None = None


class _Named(_Part):
    resource_type: str
    id: str | None = None


class _Entry(_Part):
    full_url: str | None = None
    resource: dict[str, Any] | None = None


class _Link(_Part):
    relation: str | None = None


class _Bundle(_Part):
    link: list[_Link] = []
    entry: list[_Entry] = []


_Model = TypeVar("_Model", bound=BaseModel)


def read_orders(content: Mapping[str, Any], *, name: str) -> list[Order]:
    """Read parsed JSON that has a `resourceType`; the orders in their own order, perhaps none.

    Numbers must have been parsed as int or Decimal. `name` is used in messages only.

    Raises InputRejected for another resource, a field of another type than FHIR gives it, and
    whatever the docstring of this module says is refused.
    """
    entries = _entries(content, name)
    resources: dict[str, dict[str, Any]] = {}  # by what a reference may call it
    orders: list[tuple[str, _Order]] = []
    for number, entry in enumerate(entries):
        if entry.resource is None:
            continue
        named = _parsed(_Named, entry.resource, f"{name}: entry {number + 1}")
        if named.resource_type not in (*STANDING, MEDICATION):
            continue
        short = f"{named.resource_type}/{named.id}" if named.id else None
        entry_number = f"{named.resource_type}, entry {number + 1}"
        where = f"{name}: {short if short and _ID.fullmatch(named.id or '') else entry_number}"
        for called in {entry.full_url, short} - {None}:
            if called in resources:
                raise _refused(where, "a second time", "each resource once", "Remove one of them.")
            resources[str(called)] = entry.resource
        if named.resource_type in STANDING:
            orders.append((where, _parsed(_Order, entry.resource, where)))
    _require_one_of_each(orders, name)
    return [_order(where, order, resources) for where, order in orders]


def _entries(content: Mapping[str, Any], name: str) -> list[_Entry]:
    kind = content.get("resourceType")
    if kind in STANDING:
        return [_Entry(resource=dict(content))]
    if kind != "Bundle":
        expected = f"{', '.join(STANDING)}, or a Bundle of one of them"
        raise _refused(name, f"a FHIR {kind!r:.80}", expected, "Send the prescription itself.")
    bundle = _parsed(_Bundle, content, name)
    if any(link.relation == "next" for link in bundle.link):
        remedy = "Fetch the other pages and send one Bundle."
        raise _refused(name, "one page of several", "the whole Bundle", remedy)
    return bundle.entry


def _require_one_of_each(orders: Sequence[tuple[str, _Order]], name: str) -> None:
    kinds = sorted({order.resource_type for _, order in orders})
    if len(kinds) > 1:
        found, expected = " and ".join(kinds), "one of them, or a pill may be counted twice"
        raise _refused(name, found, expected, "Send either what was ordered or what is dispensed.")
    subjects = sorted({str(order.subject.reference) for _, order in orders if order.subject})
    if len(subjects) > 1:
        remedy = "Send one Bundle for each patient."
        raise _refused(name, f"{len(subjects)} subjects {subjects!r:.80}", "one patient", remedy)


def _order(where: str, order: _Order, resources: Mapping[str, dict[str, Any]]) -> Order:
    _require_standing(where, order)
    _require_plain(where, order)
    concepts = _concepts(where, order, resources)
    codings = [coding for concept in concepts for coding in concept.coding]
    words = [concept.text for concept in concepts] + [coding.display for coding in codings]
    ndcs = [coding.code for coding in codings if coding.system == NDC_SYSTEM]
    return Order(
        where,
        next(filter(None, words), ""),
        tuple(dict.fromkeys(filter(None, ndcs))),
        _pills(where, order),
    )


def _require_standing(where: str, order: _Order) -> None:
    standing = STANDING[order.resource_type]
    remedy = "Leave it out, or correct it where it was written."
    if order.status not in standing:
        expected = f"status {', '.join(standing)}"
        raise _refused(where, f"status {order.status!r:.80}", expected, remedy)
    if order.do_not_perform:
        raise _refused(where, "doNotPerform", "a request to give a medication", remedy)
    if order.resource_type == "MedicationRequest" and order.intent not in ORDERING:
        expected = f"intent {', '.join(ORDERING)}"
        raise _refused(where, f"intent {order.intent!r:.80}", expected, remedy)


def _require_plain(where: str, part: _Meaning) -> None:
    if part.implicit_rules or part.modifier_extension:
        found = "implicitRules" if part.implicit_rules else "a modifierExtension"
        remedy = "Send the list as CSV instead."
        raise _refused(where, found, "a resource without, as it may mean anything", remedy)


def _concepts(where: str, order: _Order, resources: Mapping[str, dict[str, Any]]) -> list[_Concept]:
    either = order.medication or _CodeableReference()
    found = [order.medication_codeable_concept, either.concept]
    for reference in (order.medication_reference, either.reference):
        if reference and reference.reference:
            found.append(_referenced(where, reference.reference, order, resources))
    return [concept for concept in found if concept]


def _referenced(
    where: str, reference: str, order: _Order, resources: Mapping[str, dict[str, Any]]
) -> _Concept | None:
    if reference.startswith("#"):
        held = [
            resource
            for resource in order.contained
            if _parsed(_Contained, resource, where).id == reference[1:]
        ]
        resource = held[0] if len(held) == 1 else None
    else:
        resource = resources.get(reference.split("/_history/")[0])
    if resource is None:
        remedy = "Send a Bundle that holds the Medication as well."
        expected = "a Medication in the same file, once"
        raise _refused(where, f"medication {reference!r:.80}", expected, remedy)
    where = f"{where}, {reference!r:.80}"
    medication = _parsed(_Medication, resource, where)
    _require_plain(where, medication)
    if medication.status == "entered-in-error":
        remedy = "Correct it where it was written."
        raise _refused(where, "status 'entered-in-error'", "a medication that stands", remedy)
    return medication.code


def _pills(where: str, order: _Order) -> int | Decimal:
    """The quantity, once it is certain that it counts pills."""
    field, quantity = "quantity", order.quantity
    if order.resource_type == "MedicationRequest":
        field, request = "dispenseRequest.quantity", order.dispense_request or _DispenseRequest()
        _require_plain(where, request)
        quantity = request.quantity
    remedy = "Write the number of pills into it, or send the list as CSV."
    if quantity is None or quantity.value is None:
        raise _refused(where, f"no {field}", "a number of pills", remedy)
    if quantity.comparator is not None:
        found = f"{field} {quantity.comparator!r:.80}"
        raise _refused(where, found, "an exact number of pills", remedy)
    units = [unit for unit in (quantity.code, quantity.unit) if unit]
    if units and not any(_PILLS.fullmatch(unit.strip("{}").casefold()) for unit in units):
        found = f"{field} in {units[0]!r:.80}"
        raise _refused(where, found, "tablets, capsules or no unit", remedy)
    return quantity.value


def _parsed(model: type[_Model], content: object, where: str) -> _Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        found = f"{field:.80}: {first['msg']}"
        raise _refused(where, found, "FHIR R4 or R5", "Correct the file.") from error


def _refused(subject: str, found: str, expected: str, remedy: str) -> InputRejected:
    return InputRejected(subject, found=found, expected=expected, remedy=remedy)
