// Device: which bundle is open, what it promises, and how the device is doing.
import { ask } from "../api.js";
import { element } from "../dom.js";
import { text } from "../strings.js";

const SHARES = new Set(["promised_fpir", "promised_misnamed"]);
const DIGESTS = new Set(["git_commit", "space", "active"]);

export async function open(place) {
  const groups = element("div", { class: "columns" });
  place.append(element("h1", {}, text.deviceTitle), groups);

  async function show() {
    const { update, ...rest } = await ask("status");
    const status = { ...rest, ...update };
    const shown = Object.entries(text.status).filter(([, rows]) => Object.keys(rows)[0] in status);
    groups.replaceChildren(...shown.map(([title, rows]) =>
      element("section", { class: "card" }, element("h2", {}, title),
        element("dl", {}, Object.entries(rows).flatMap(([key, words]) =>
          [element("dt", {}, words), element("dd", {}, inWords(key, status[key], status))])))));
  }
  await show();
  const timer = setInterval(() => show().catch(() => {}), 5000);
  return () => clearInterval(timer);
}

function inWords(key, value, status) {
  if (key === "events") {
    const { events_waiting: waiting, events_dropped: dropped } = status;
    return text.eventsNow[value] + (waiting || dropped ? ` (${text.eventsLost(waiting, dropped)})` : "");
  }
  if (key === "follows") return value || text.nobody;
  if (key === "active" && value === null) return text.ofInstall;
  if (key === "last_time") return value ? new Date(value).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "–";
  if (key === "last") return value || "–";
  if (key === "uptime_s") return text.duration(Math.floor(value / 3600), Math.floor((value % 3600) / 60));
  if (SHARES.has(key)) return `${(100 * value).toFixed(1)} %`;
  if (DIGESTS.has(key)) return element("code", {}, value);
  if (key === "calibrated_for_pills") return text.pillsOf(value.toLocaleString("en"));
  if (typeof value === "boolean") return text.yesNo[value];
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(4);
  return String(value);
}
