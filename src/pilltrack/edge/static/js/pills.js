// Pills as people see them: marks over a picture, and a list beside it.
import { element } from "./dom.js";
import { text } from "./strings.js";

const DASHES = { known: [], unknown: [3, 5], ambiguous: [12, 7], checking: [2, 3] };

// Draws in the pixels of the screen, so that words are as sharp and as large on any; boxes come in
// pixels of a frame of that width and height, whose shape the canvas has.
export function paint(canvas, width, height, pills) {
  const fit = Math.min(canvas.clientWidth / width, canvas.clientHeight / height);
  const wideOnScreen = fit ? fit * width : width;
  const sharpness = devicePixelRatio * wideOnScreen / width;
  const size = { width: Math.round(width * sharpness), height: Math.round(height * sharpness) };
  if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
  const brush = canvas.getContext("2d");
  const unit = Math.min(1, Math.max(0.8, wideOnScreen / 640)) * width / wideOnScreen;
  brush.setTransform(sharpness, 0, 0, sharpness, 0, 0);
  brush.clearRect(0, 0, width, height);
  brush.font = `600 ${Math.round(15 * unit)}px system-ui, sans-serif`;
  brush.textBaseline = "middle";
  for (const pill of pills) {
    const [x, y, w, h] = pill.box;
    const colour = { known: "#37c871", unknown: "#ff6b5e", ambiguous: "#ffb938", checking: "#c8d2e6" }[pill.decision];
    for (const [line, ink] of [[5, "rgba(5, 8, 16, .8)"], [2.5, colour]]) {
      brush.setLineDash(line === 5 ? [] : DASHES[pill.decision].map((part) => part * unit));
      brush.lineWidth = line * unit;
      brush.strokeStyle = ink;
      brush.strokeRect(x, y, w, h);
    }
    const words = `${text.marks[pill.decision]} ${nameOf(pill)}`;
    const wide = brush.measureText(words).width + 12 * unit;
    const high = 22 * unit;
    const top = y - high - 3 * unit >= 0 ? y - high - 3 * unit : Math.min(y + h + 3 * unit, height - high);
    const left = Math.max(0, Math.min(x, width - wide));
    brush.fillStyle = "rgba(5, 8, 16, .86)";
    brush.fillRect(left, top, wide, high);
    brush.fillStyle = colour;
    brush.fillText(words, left + 6 * unit, top + high / 2);
  }
}

export function nameOf(pill) {
  if (pill.decision === "known") return pill.pill;
  if (pill.decision === "ambiguous" && pill.candidates.length > 1) {
    return text.ambiguousBetween(pill.candidates[0].pill, pill.candidates[1].pill);
  }
  return text.decisions[pill.decision];
}

export function badge(kind, words = text.decisions[kind]) {
  return element("span", { class: `badge ${kind}` }, `${text.marks[kind] ?? ""} ${words}`.trim());
}

// `pictures` maps a pill to the address of a picture, where the device keeps one.
export function listed(pills, pictures) {
  return element("ul", { class: "pills" }, pills.map((pill) =>
    element("li", { class: pill.decision },
      badge(pill.decision), " ", element("strong", {}, pill.decision === "unknown" ? "" : nameOf(pill)),
      text.explain[pill.decision] ? element("div", { class: "quiet" }, text.explain[pill.decision]) : null,
      pill.candidates.length ? element("details", {},
        element("summary", {}, text.why),
        element("ul", { class: "candidates" }, pill.candidates.map((candidate) =>
          element("li", {}, thumb(pictures.get(candidate.pill), candidate.pill),
            element("span", {}, candidate.pill, " ",
              element("span", { class: "quiet" }, `${text.score} ${candidate.score.toFixed(2)}`)))))) : null)));
}

export function thumb(address, name) {
  if (address) return element("img", { class: "thumb", src: address, alt: name, loading: "lazy" });
  return element("span", { class: "thumb nothumb", role: "img", "aria-label": text.noPicture }, text.noPicture);
}

export async function picturesOf(ask) {
  const { pills } = await ask("gallery");
  return new Map(pills.filter((pill) => pill.photos.length).map((pill) => [pill.pill, pill.photos[0]]));
}
