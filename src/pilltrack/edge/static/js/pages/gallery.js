// Gallery: every enrolled pill, its pictures where the device keeps some, and forgetting one.
import { ask } from "../api.js";
import { announce, element, notice } from "../dom.js";
import { thumb } from "../pills.js";
import { text } from "../strings.js";

const SHOWN = 120; // a bundle may hold thousands

export async function open(place) {
  const search = element("input", { type: "search", placeholder: text.searchGallery, "aria-label": text.searchGallery });
  const grid = element("div", { class: "grid" });
  const outcome = element("div");
  const count = element("p", { class: "quiet", role: "status" });
  place.append(element("h1", {}, text.galleryTitle), element("div", { class: "row" }, search, count), outcome, grid);
  let { pills } = await ask("gallery");

  function show() {
    const words = search.value.trim().toLowerCase();
    const found = pills.filter((pill) => [pill.pill, ...Object.values(pill.metadata)].some((value) => value.toLowerCase().includes(words)));
    grid.replaceChildren(...found.slice(0, SHOWN).map(card));
    count.textContent = found.length > SHOWN ? text.shownOf(SHOWN, found.length) : text.pillsEnrolled(found.length);
    if (!found.length) grid.replaceChildren(element("p", { class: "quiet" }, pills.length ? text.noMatch : text.emptyGallery));
  }

  function card(pill) {
    const described = Object.entries(pill.metadata).map(([key, value]) => `${key} ${value}`).join(", ");
    return element("article", { class: "card" },
      element("h2", {}, pill.pill),
      described ? element("p", { class: "quiet" }, described) : null,
      pill.photos.length ? element("div", { class: "thumbs" }, pill.photos.slice(0, 6).map((address) => thumb(address, pill.pill))) : null,
      element("p", { class: "quiet" }, text.references(pill.references), ", ",
        pill.local ? text.ofDevice(pill.local, pill.references) : text.ofBundle),
      pill.local ? element("button", { type: "button", class: "danger", onclick: () => sure(pill) }, text.forget) : null);
  }

  function sure(pill) {
    const dialog = element("dialog", {},
      element("p", {}, text.forgetSure(pill.pill)),
      element("div", { class: "row" },
        element("button", { type: "button", class: "danger", onclick: () => { dialog.close(); forget(pill); } }, text.yes),
        element("button", { type: "button", class: "main", onclick: () => dialog.close() }, text.no)));
    dialog.addEventListener("close", () => dialog.remove());
    place.append(dialog);
    dialog.showModal();
  }

  async function forget(pill) {
    try {
      await ask(`gallery/${encodeURIComponent(pill.pill)}`, { method: "DELETE" });
      outcome.replaceChildren(notice("good", text.forgotten(pill.pill)));
      announce(text.forgotten(pill.pill));
      ({ pills } = await ask("gallery"));
      show();
    } catch (failure) {
      outcome.replaceChildren(notice("bad", text.failed, failure.message, failure.remedy));
    }
  }

  search.addEventListener("input", show);
  show();
}
