// History: every checked tray on record, with its crops and what was done about it.
import { ask } from "../api.js";
import { linesTable } from "../checked.js";
import { element, notice } from "../dom.js";
import { thumb } from "../pills.js";
import { text } from "../strings.js";

const PAGE = 20;

export async function open(place) {
  const list = element("div", { class: "grid", style: "grid-template-columns: minmax(0, 1fr)" });
  const older = element("button", { type: "button", hidden: true }, text.older);
  place.append(element("h1", {}, text.historyTitle), list, element("div", { class: "row" }, older));
  let before = "";

  async function more() {
    const { records } = await ask(`history?limit=${PAGE}${before}`);
    list.append(...records.map(card));
    older.hidden = records.length < PAGE;
    if (records.length) before = `&before=${records.at(-1).number}`;
    if (!list.children.length) list.append(element("p", { class: "quiet" }, text.emptyHistory));
  }
  older.addEventListener("click", () => more().catch((failure) =>
    list.append(notice("bad", text.failed, failure.message, failure.remedy))));
  await more();
}

function card(record) {
  const time = new Date(record.time).toLocaleString();
  const done = record.actions.map((action) => `${text.actions[action.action] ?? action.action}${action.note ? `: ${action.note}` : ""}`);
  return element("article", { class: "card" },
    element("h2", {}, text.recordOf(record.number, time)),
    record.ok === null ? null : notice(record.ok ? "good" : "bad", record.ok ? text.trayOk : text.trayNotOk),
    element("div", { class: "thumbs" }, record.crops.map((address, index) => thumb(address, record.pills[index].pill ?? text.decisions[record.pills[index].decision]))),
    record.lines.length ? linesTable(record.lines) : null,
    element("p", { class: "quiet" }, done.length ? done.join("; ") : text.noAction, ". ", record.bundle));
}
