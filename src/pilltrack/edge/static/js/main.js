// The frame around the pages: which one is open follows from the part of the address after #/.
import { ask } from "./api.js";
import { announce, element, icon, notice } from "./dom.js";
import { signIn } from "./session.js";
import { text } from "./strings.js";

const PAGES = ["identify", "enrol", "gallery", "check", "history", "device"];

const place = document.querySelector("#page");
let leave = () => {};

for (const marked of document.querySelectorAll("[data-text]")) {
  marked.textContent = text[marked.dataset.text];
}
const nav = document.querySelector("nav");
nav.setAttribute("aria-label", text[nav.dataset.label]);
nav.append(...PAGES.map((name) => element("a", { href: `#/${name}` }, icon(name), text[name])));

async function open() {
  const name = PAGES.find((page) => location.hash.startsWith(`#/${page}`)) ?? PAGES[0];
  for (const link of nav.children) {
    if (link.getAttribute("href") === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave();
  leave = () => {};
  document.title = `${text[name]} - PillTrack`;
  place.replaceChildren(element("p", { class: "quiet" }, text.loading));
  try {
    await ask("status");
    const page = await import(`./pages/${name}.js`);
    place.replaceChildren();
    leave = (await page.open(place)) ?? (() => {});
    announce(text[name]);
  } catch (failure) {
    if (failure.status === 401) {
      place.replaceChildren(signIn(open));
    } else {
      place.replaceChildren(notice("bad", text.failed, failure.message, failure.remedy));
    }
  }
}

addEventListener("hashchange", () => { open(); place.focus(); });
open();
