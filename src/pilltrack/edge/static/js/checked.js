// A checked tray in a table, with the words for its verdicts.
import { element } from "./dom.js";
import { text } from "./strings.js";

const KINDS = { ok: "ok", missing: "missing", extra: "extra", "wrong strength": "strength", uncertain: "uncertain", unknown: "unknown" };

export function verdict({ verdict: name, expected }) {
  const words = name === "extra" && !expected ? text.notListed : text.verdicts[name];
  return element("span", { class: `badge ${KINDS[name]}` }, `${text.verdictMarks[name]} ${words}`);
}

export function linesTable(lines) {
  const head = [text.pillColumn, text.foundColumn, text.verdictColumn];
  return element("div", { class: "scroll" }, element("table", { class: "lines" },
    element("thead", {}, element("tr", {}, head.map((words) => element("th", { scope: "col" }, words)))),
    element("tbody", {}, lines.map((line) => element("tr", {},
      element("td", {}, line.pill ?? text.nameless[line.verdict],
        line.instead_of.length ? element("div", { class: "quiet" }, text.insteadOf(line.instead_of.join(", "))) : null),
      element("td", {}, text.foundOf(line.found, line.expected)),
      element("td", {}, verdict(line)))))));
}
