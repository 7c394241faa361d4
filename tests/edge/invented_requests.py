"""Loaded by schemathesis: puts real photos into half of the valid requests that it invents.

Without them every upload would end where the photo is decoded.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.edge.conftest import noise, png, red

PHOTOS = {"photo": png(red()), "noise": png(noise())}


@schemathesis.hook
def flatmap_case(context: Any, case: Any) -> st.SearchStrategy[Any]:
    """The same request, or the same with a real photo."""
    names = {"image", "photos"} & set(case.body) if isinstance(case.body, dict) else ()
    if not names or case.meta.generation.mode.is_negative:
        return st.just(case)

    def with_photo(photo: bytes | None) -> Any:
        if photo is not None:
            (name,) = names
            case.body[name] = photo if name == "image" else [photo]
            if "expected" in case.body and photo == PHOTOS["noise"]:
                case.body["expected"] = "2 red-pill"
        return case

    return st.sampled_from([None, *PHOTOS.values()]).map(with_photo)
