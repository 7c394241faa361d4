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
  const time = new Date(record.time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  const result = record.ok ? ["ok", `${text.verdictMarks.ok} ${text.recordOk}`] : ["missing", `${text.verdictMarks["wrong strength"]} ${text.recordNotOk}`];
  return element("article", { class: "card" },
    element("div", { class: "between" },
      element("h2", {}, text.recordOf(record.number), " ", element("time", { class: "quiet", dateTime: record.time }, time)),
      record.ok === null ? null : element("span", { class: `badge ${result[0]}` }, result[1])),
    element("div", { class: "thumbs" }, record.crops.map((address, index) => thumb(address, record.pills[index].pill ?? text.decisions[record.pills[index].decision]))),
    record.lines.length ? linesTable(record.lines) : null,
    element("div", { class: "between quiet" },
      element("p", {}, record.actions.length ? record.actions.map(done).join("; ") : text.noAction),
      element("p", {}, text.byBundle(record.bundle))));
}

const done = ({ action, note }) => `${text.actions[action] ?? action}${note ? `: ${note}` : ""}`;
