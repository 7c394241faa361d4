// Why photos are refused: a list beside each, and the pill it collides with beside the new one.
import { element } from "./dom.js";
import { thumb } from "./pills.js";
import { text } from "./strings.js";

const CROP = 320; // pixels of a new pill's picture
const PILL_SHARE = 0.75; // of the picture's side, as in those that the device keeps

export function sideChoice(chosen, properties = {}) {
  const options = Object.entries(text.sides).map(([value, words]) =>
    element("option", { value, selected: value === chosen }, words));
  return element("select", properties, options);
}

// Null without a fault.
export function faultList(faults) {
  if (!faults.length) return null;
  return element("ul", { class: "faults" }, faults.map((fault) => element("li", {},
    element("strong", {}, `${text.faultMark} ${text.faults[fault.kind]}`), " ",
    element("span", {}, text.foundExpected(fault.found, fault.expected)),
    element("div", {}, fault.remedy))));
}

// Both pictures, the new one cut to the pill as the other is.
export function pair(address, box, fault) {
  const canvas = element("canvas", { width: CROP, height: CROP, role: "img", "aria-label": text.newPill });
  const photo = new Image();
  photo.addEventListener("load", () => {
    const [x, y, width, height] = box;
    const side = Math.max(width, height) / PILL_SHARE;
    canvas.getContext("2d").drawImage(photo, x + (width - side) / 2, y + (height - side) / 2, side, side, 0, 0, CROP, CROP);
  });
  photo.src = address;
  return element("div", { class: "pair" },
    element("figure", {}, canvas, element("figcaption", {}, text.newPill)),
    element("figure", {}, thumb(fault.picture, fault.other),
      element("figcaption", {}, text.enrolledAs(fault.other))));
}
