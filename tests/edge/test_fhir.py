"""A FHIR order is counted exactly, or refused; fields as in the specification's own examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pilltrack.core.errors import InputRejected
from pilltrack.edge.fhir import NDC_SYSTEM
from pilltrack.edge.prescription import Expected, read_expected

PILLS: dict[str, dict[str, str]] = {
    "ibuprofen-200": {"ndc": "0573-0154-20"},  # 4-4-2
    "ibuprofen-400": {"ndc": "12345-678-90"},  # 5-3-2
    "aspirin-81": {"ndc": "54321-9876-5"},  # 5-4-1
    "other-9": {"ndc": "00000-0009"},  # labeler and product alone
    "unnamed": {},
}
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"


def read(content: object, pills: dict[str, dict[str, str]] | None = None) -> list[Expected]:
    data = json.dumps(content).encode()
    return read_expected(data, name="order", pills=PILLS if pills is None else pills)


def concept(*codes: str, system: str = NDC_SYSTEM) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code} for code in codes], "text": "Advil"}


def dispense(code: str = "0573-0154-20", value: object = 2, **changed: object) -> dict[str, Any]:
    content = {
        "resourceType": "MedicationDispense",
        "id": f"d-{code}",
        "status": "completed",
        "medicationCodeableConcept": concept(code),
        "subject": {"reference": "Patient/pat1", "display": "Donald Duck"},
        "quantity": {
            "value": value,
            "system": "http://terminology.hl7.org/CodeSystem/v3-orderableDrugForm",
            "code": "TAB",
        },
        **changed,
    }
    return {key: value for key, value in content.items() if value is not None}


def request(code: str = "0573-0154-20", value: object = 2, **changed: object) -> dict[str, Any]:
    content = {
        "resourceType": "MedicationRequest",
        "id": f"r-{code}",
        "status": "active",
        "intent": "order",
        "medicationCodeableConcept": concept(code),
        "subject": {"reference": "Patient/pat1"},
        "dispenseRequest": {"numberOfRepeatsAllowed": 3, "quantity": {"value": value}},
        **changed,
    }
    return {key: value for key, value in content.items() if value is not None}


def bundle(*resources: dict[str, Any], **changed: object) -> dict[str, Any]:
    entries = [{"fullUrl": f"http://x/{i}", "resource": r} for i, r in enumerate(resources)]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries, **changed}


@pytest.mark.parametrize("order", [dispense, request])
def test_order_gives_its_pill_and_quantity(order: Callable[..., dict[str, Any]]) -> None:
    assert read(order("12345-678-90", 30)) == [Expected("ibuprofen-400", 30)]
    assert read(order("12345-678-90", 30.0)) == [Expected("ibuprofen-400", 30)]


def test_bundle_adds_up_and_passes_over_what_orders_nothing() -> None:
    patient = {"resourceType": "Patient", "id": "pat1", "name": [{"family": "Duck"}]}
    again = dispense("0573-0154-20", 3, id="d2")
    content = bundle(patient, dispense("54321-9876-5", 1), dispense(), again)
    assert read(content) == [Expected("aspirin-81", 1), Expected("ibuprofen-200", 5)]


@pytest.mark.parametrize(
    ("code", "pill"),
    [
        ("0573-0154-20", "ibuprofen-200"),  # as it stands
        ("0573015420", "ibuprofen-200"),  # without dashes
        ("00573-0154-20", "ibuprofen-200"),  # padded to 5-4-2
        ("00573015420", "ibuprofen-200"),  # eleven digits
        ("0573-0154", "ibuprofen-200"),  # without its package
        ("0573-0154-70", "ibuprofen-200"),  # another package
        ("12345067890", "ibuprofen-400"),
        ("1234567890", "ibuprofen-400"),
        ("54321-9876-05", "aspirin-81"),
        ("54321987605", "aspirin-81"),
        ("0000-0009-12", "other-9"),
        ("000000009", "other-9"),
    ],
)
def test_ndc_is_found_with_and_without_dashes(code: str, pill: str) -> None:
    assert read(dispense(code)) == [Expected(pill, 2)]


@pytest.mark.parametrize(
    "code",
    [
        "1234-5678-90",  # the digits of ibuprofen-400, but another labeler
        "1234-567-890",
        "573015420",
        "0573-0154-2O",
        "0573 0154 20",
        "0000000000",  # ten digits could part anywhere
        "",
    ],
)
def test_ndc_of_no_enrolled_pill_is_refused(code: str) -> None:
    with pytest.raises(InputRejected, match=r"order: MedicationDispense.*(enrolled|without)"):
        read(dispense(code))


def test_ndc_without_dashes_in_the_metadata_is_found_as_well() -> None:
    pills = {"ten": {"ndc": "1234567890"}, "eleven": {"ndc": "00573015420"}}
    assert read(dispense("12345-678-90"), pills) == [Expected("ten", 2)]
    assert read(dispense("0573-0154-20"), pills) == [Expected("eleven", 2)]


def test_package_decides_between_pills_of_one_product_only() -> None:
    pills = {"a": {"ndc": "12345-6789-1"}, "b": {"ndc": "12345-6789-2"}}
    assert read(dispense("12345-6789-02"), pills) == [Expected("b", 2)]
    for code in ("12345-6789-3", "12345-6789"):
        with pytest.raises(
            InputRejected, match=r"NDC '12345-6789.*which a and b share; expected the NDC"
        ):
            read(dispense(code), pills)


def test_codings_of_one_medication_must_agree() -> None:
    both = concept("12345-678-90", "99999-999-99")
    both["coding"].insert(0, {"system": RXNORM, "code": "310965"})
    assert read(dispense(medicationCodeableConcept=both)) == [Expected("ibuprofen-400", 2)]
    with pytest.raises(InputRejected, match="which aspirin-81 and ibuprofen-400 share"):
        read(dispense(medicationCodeableConcept=concept("12345-678-90", "54321-9876-5")))


def test_medication_without_an_ndc_is_refused_in_words() -> None:
    coded = concept("310965", system=RXNORM)
    with pytest.raises(
        InputRejected, match=f"'Advil' without an NDC; expected a coding with {NDC_SYSTEM}"
    ):
        read(dispense(medicationCodeableConcept=coded))
    with pytest.raises(InputRejected, match="a medication without an NDC"):
        read(dispense(medicationCodeableConcept=None))


@pytest.mark.parametrize("release", ["R4", "R5"])
def test_contained_medication_is_read(release: str) -> None:
    reference = {"reference": "#med1"}
    where = {"medicationReference": reference} if release == "R4" else {
        "medication": {"reference": reference}
    }  # fmt: skip
    medication = {"resourceType": "Medication", "id": "med1", "code": concept("54321-9876-5")}
    other = {"resourceType": "Organization", "id": "maker"}
    order = request(medicationCodeableConcept=None, contained=[other, medication], **where)
    assert read(order) == [Expected("aspirin-81", 2)]


def test_concept_of_release_5_is_read() -> None:
    order = dispense(medicationCodeableConcept=None, medication={"concept": concept("0573-0154")})
    assert read(order) == [Expected("ibuprofen-200", 2)]


@pytest.mark.parametrize("reference", ["Medication/m", "Medication/m/_history/3", "http://x/0"])
def test_medication_elsewhere_in_the_bundle_is_read(reference: str) -> None:
    medication = {"resourceType": "Medication", "id": "m", "code": concept("54321-9876-5")}
    order = request(medicationCodeableConcept=None, medicationReference={"reference": reference})
    assert read(bundle(medication, order)) == [Expected("aspirin-81", 2)]


@pytest.mark.parametrize("reference", ["Medication/m", "#m", "#", "urn:uuid:1"])
def test_medication_that_is_not_in_the_file_is_refused(reference: str) -> None:
    order = request(medicationCodeableConcept=None, medicationReference={"reference": reference})
    with pytest.raises(InputRejected, match=f"medication '{reference}'; expected a Medication in"):
        read(order)


@pytest.mark.parametrize("value", [0, -1, 2.5, 10001, None, 1e300])
def test_quantity_that_is_no_whole_number_of_pills_is_refused(value: float | None) -> None:
    with pytest.raises(InputRejected, match=r"count|no quantity"):
        read(dispense(value=value))


@pytest.mark.parametrize("value", [True, "2", [2]])
def test_quantity_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(InputRejected, match=r"quantity\.value"):
        read(dispense(value=value))


def test_missing_quantity_is_refused_and_not_taken_for_one() -> None:
    for order in (dispense(quantity=None), dispense(quantity={}), dispense(quantity={"unit": "x"})):
        with pytest.raises(InputRejected, match="no quantity"):
            read(order)
    for empty in (None, {}, {"numberOfRepeatsAllowed": 1}):
        with pytest.raises(InputRejected, match=r"no dispenseRequest\.quantity"):
            read(request(dispenseRequest=empty))


@pytest.mark.parametrize(
    "unit",
    [
        {},
        {"code": "TAB"},
        {"code": "ERCAP24"},
        {"code": "CAPLET"},
        {"code": "PILL"},
        {"code": "{tbl}"},
        {"code": "1"},
        {"unit": "Tablets"},
        {"unit": "capsule"},
        {"code": "C48542", "unit": "Tablet"},
    ],
)
def test_quantity_in_pills_is_accepted(unit: dict[str, str]) -> None:
    assert read(dispense(quantity={"value": 2, **unit})) == [Expected("ibuprofen-200", 2)]


@pytest.mark.parametrize(
    "unit", [{"code": "ml"}, {"unit": "mg"}, {"code": "patch"}, {"unit": "box"}, {"code": "10*3"}]
)
def test_quantity_in_another_unit_is_refused(unit: dict[str, str]) -> None:
    with pytest.raises(InputRejected, match=r"quantity in .*expected tablets"):
        read(dispense(quantity={"value": 2, **unit}))


def test_quantity_that_is_not_exact_is_refused() -> None:
    with pytest.raises(InputRejected, match="'<'; expected an exact number"):
        read(dispense(quantity={"value": 2, "comparator": "<"}))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (dispense(status="cancelled"), "status 'cancelled'; expected status preparation"),
        (dispense(status="entered-in-error"), "status 'entered-in-error'"),
        (dispense(status=None), "status None"),
        (request(status="draft"), "status 'draft'; expected status active, completed"),
        (request(status="on-hold"), "status 'on-hold'"),
        (request(status="stopped"), "status 'stopped'"),
        (request(intent="option"), "intent 'option'; expected intent order"),
        (request(intent="plan"), "intent 'plan'"),
        (request(doNotPerform=True), "doNotPerform"),
        (request(modifierExtension=[{"url": "http://x/not"}]), "a modifierExtension"),
        (request(implicitRules="http://x/rules"), "implicitRules"),
    ],
)
def test_resource_that_does_not_stand_is_refused(order: dict[str, Any], message: str) -> None:
    with pytest.raises(InputRejected, match=f"^order: Medication.*/.*: {message}"):
        read(bundle(dispense("54321-9876-5", id="good", status="completed"), order)
             if order["resourceType"] == "MedicationDispense" else order)  # fmt: skip


def test_request_beside_its_dispense_is_refused_and_not_counted_twice() -> None:
    with pytest.raises(InputRejected, match="MedicationDispense and MedicationRequest"):
        read(bundle(request(), dispense()))


def test_resource_twice_is_refused() -> None:
    with pytest.raises(InputRejected, match="MedicationRequest/r-0573-0154-20: a second time"):
        read(bundle(request(), request(value=3)))


def test_identifier_that_is_none_is_not_shown() -> None:
    with pytest.raises(InputRejected, match="order: MedicationRequest, entry 2: a second time"):
        read(bundle(request(id="\x1b[2J"), request(id="\x1b[2J")))


def test_two_patients_are_refused() -> None:
    other = request("54321-9876-5", subject={"reference": "Patient/pat2"})
    with pytest.raises(InputRejected, match=r"2 subjects .*pat1.*pat2"):
        read(bundle(request(), other))


def test_one_page_of_several_is_refused() -> None:
    link = [{"relation": "self", "url": "http://x"}, {"relation": "next", "url": "http://x?2"}]
    with pytest.raises(InputRejected, match="one page of several"):
        read(bundle(request(), link=link))
    assert read(bundle(request(), link=link[:1])) == [Expected("ibuprofen-200", 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"resourceType": "Patient"}, "a FHIR 'Patient'"),
        ({"resourceType": 7}, "a FHIR 7"),
        (bundle(), "no pill"),
        (bundle({"resourceType": "Patient"}), "no pill"),
        (bundle({"id": "1"}), "entry 1: resourceType"),
        ({"resourceType": "Bundle", "entry": "x"}, "entry"),
        (dispense(medicationCodeableConcept=[1]), "medicationCodeableConcept"),
        (dispense(contained={}), "contained"),
    ],
)
def test_what_is_no_order_is_refused(content: object, message: str) -> None:
    with pytest.raises(InputRejected, match=message):
        read(content)
