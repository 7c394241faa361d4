// Device: which bundle is open, what it promises, and how the device is doing.
import { ask } from "../api.js";
import { element } from "../dom.js";
import { text } from "../strings.js";

const SHARES = new Set(["promised_fpir", "promised_misnamed"]);

export async function open(place) {
  const table = element("table", {}, element("tbody"));
  place.append(element("h1", {}, text.deviceTitle), element("div", { class: "card scroll" }, table));

  async function show() {
    const status = await ask("status");
    table.tBodies[0].replaceChildren(...Object.entries(text.status).map(([key, words]) =>
      element("tr", {}, element("th", { scope: "row" }, words), element("td", {}, inWords(key, status[key])))));
  }
  await show();
  const timer = setInterval(() => show().catch(() => {}), 5000);
  return () => clearInterval(timer);
}

function inWords(key, value) {
  if (key === "uptime_s") return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  if (SHARES.has(key)) return `${(100 * value).toFixed(1)} %`;
  if (typeof value === "boolean") return value ? "✓" : "–";
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(4);
  return String(value);
}
